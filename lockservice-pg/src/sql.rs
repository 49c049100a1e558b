//! [`Sql`]: the statements of the store.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::config::SchemaName;
use crate::connections::Statement;
use crate::migrate::in_schema;

/// The statements, with the schema's name in them.
pub(crate) struct Sql {
    pub(crate) head: Arc<str>,
    pub(crate) lead: Arc<str>,
    pub(crate) renew: Arc<str>,
    pub(crate) resign: Arc<str>,
    pub(crate) write: Arc<str>,
    pub(crate) constants: Arc<str>,
    pub(crate) forgotten: Arc<str>,
    pub(crate) tables: Arc<str>,
    pub(crate) services: Arc<str>,
    pub(crate) tombstones: Arc<str>,
}

impl Sql {
    pub(crate) fn new(schema: &SchemaName) -> Self {
        let text = |text: &str| Arc::from(in_schema(text, schema));
        Self {
            // One row, whether there is a head or not.
            head: text(
                "select $schema.lineage() as lineage, r.format, r.record, \
                 floor(extract(epoch from clock_timestamp()))::bigint as clock_s \
                 from (select) as one left join $schema.head_record() as r on true",
            ),
            lead: text(
                "select * from $schema.lead($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb)",
            ),
            renew: text("select * from $schema.renew($1, $2)"),
            resign: text("select * from $schema.resign($1, $2, $3)"),
            write: text(
                "select * from $schema.write_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
                 $12, $13, $14, $15, \
                 $16, $17, $18)",
            ),
            constants: text("select format, record::text as record from $schema.constants"),
            forgotten: text("select format, record::text as record from $schema.forgotten"),
            tables: text(
                "select \"group\", name, format, record::text as record from $schema.tables",
            ),
            services: text(
                "select id::text as id, format, record::text as record from $schema.services",
            ),
            tombstones: text(
                "select origin::text as origin, counter::text as counter, format from \
                    $schema.tombstones",
            ),
        }
    }
}

pub(crate) fn sql<'q>(text: &Arc<str>) -> Statement<'q> {
    sqlx::query(AssertSqlSafe(Arc::clone(text)))
}
