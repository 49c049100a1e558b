-- Format 1. "$schema" is the cluster's schema. Names are compared byte by byte ("C"), whatever the
-- database's locale is or becomes.

create table $schema.format (
    version integer primary key,
    migrated_at timestamptz not null default now()
);
comment on table $schema.format is 'lockservice: versions of this schema, the highest counts';

create table $schema.head (
    one boolean primary key default true check (one),
    format smallint not null default 1,
    epoch bigint not null default 0,
    applied bigint not null default 0,
    counter bigint not null default 0,
    led boolean not null default false,
    record jsonb not null default '{}'
) with (fillfactor = 50);
comment on table $schema.head is
    'lockservice: who leads and how far the store has come; record is as it was when the '
    'leadership began, the columns are as of now; epoch 0 stands for no leader ever';

create table $schema.constants (
    one boolean primary key default true check (one),
    format smallint not null,
    record jsonb not null
);

create table $schema.tables (
    "group" text collate "C" not null,
    name text collate "C" not null,
    format smallint not null,
    record jsonb not null,
    primary key ("group", name)
);

create table $schema.forgotten (
    one boolean primary key default true check (one),
    format smallint not null,
    record jsonb not null
);
comment on table $schema.forgotten is
    'lockservice: the highest numbers of the tables that were forgotten; no row if none was';

create table $schema.services (
    id numeric(20) primary key,
    format smallint not null,
    record jsonb not null
);

create table $schema.tombstones (
    origin numeric(20) not null,
    counter numeric(20) not null,
    format smallint not null,
    primary key (origin, counter)
);

-- The line of history (L4): a copy restored elsewhere has another identifier, a promoted replica
-- another timeline.
create function $schema.lineage() returns text language sql volatile as $$
    select c.system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        from pg_control_system() as c
$$;

-- The head as the core writes it: all that it wrote, with what has changed since.
create function $schema.head_record() returns table (format smallint, record text)
language sql volatile as $$
    select h.format, (h.record
        || jsonb_build_object('epoch', h.epoch, 'applied', h.applied, 'counter', h.counter)
        || case when h.led then '{}' else '{"leader": null}' end::jsonb)::text from $schema.head as h
$$;

-- What every change begins with: it waits for a lock no longer than this, and is not done
-- before it is on the disk.
create function $schema.begin_change(lock_ms integer) returns void language plpgsql as $$
begin
    perform set_config('lock_timeout', lock_ms::text, true);
    if current_setting('synchronous_commit') = 'off' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
end $$;

-- L1: compare and set. Nothing is changed unless the head is still the one on which the decision
-- was made.
create function $schema.lead(
    lock_ms integer, channel text,
    found_epoch bigint, found_applied bigint, found_counter bigint, found_led boolean,
    new_epoch bigint, new_lineage text, new_record jsonb
) returns table (done boolean, applied bigint) language plpgsql as $$
begin
    perform $schema.begin_change(lock_ms);
    insert into $schema.head default values on conflict (one) do nothing;
    return query
        update $schema.head as h set epoch = new_epoch, led = true, record = new_record
        where h.epoch = found_epoch and h.applied = found_applied and h.counter = found_counter
            and h.led = found_led and new_lineage = $schema.lineage()
        returning true, h.applied;
    if found then
        perform pg_notify(channel, new_epoch::text);
    else
        return query select false, 0::bigint;
    end if;
end $$;

create function $schema.renew(lock_ms integer, of_epoch bigint)
returns table (done boolean, format smallint, record text, lineage text) language plpgsql as $$
begin
    perform $schema.begin_change(lock_ms);
    update $schema.head as h set counter = h.counter + 1 where h.epoch = of_epoch and h.led;
    if found then
        return query select true, null::smallint, null::text, $schema.lineage();
    else
        return query select false, r.format, r.record, $schema.lineage()
            from (select) as s left join $schema.head_record() as r on true;
    end if;
end $$;

create function $schema.resign(lock_ms integer, channel text, of_epoch bigint)
returns table (done boolean, format smallint, record text, lineage text) language plpgsql as $$
begin
    perform $schema.begin_change(lock_ms);
    update $schema.head as h set led = false where h.epoch = of_epoch and h.led;
    if found then
        perform pg_notify(channel, of_epoch::text);
        return query select true, null::smallint, null::text, $schema.lineage();
    else
        return query select false, r.format, r.record, $schema.lineage()
            from (select) as s left join $schema.head_record() as r on true;
    end if;
end $$;

-- One batch, fenced by epoch and number (L2): the update of the head locks its row and compares it
-- in one step. No key comes twice.
create function $schema.write_batch(
    lock_ms integer, of_epoch bigint, number bigint, of_format smallint,
    constants text, forgotten text,
    put_groups text[], put_names text[], put_tables text[], gone_groups text[], gone_names text[],
    put_service_ids text[], put_services text[], gone_services text[],
    put_origins text[], put_counters text[], gone_origins text[], gone_counters text[]
) returns table (done boolean, format smallint, record text, lineage text) language plpgsql as $$
begin
    perform $schema.begin_change(lock_ms);
    update $schema.head as h set applied = number
        where h.epoch = of_epoch and h.led and h.applied + 1 = number;
    if not found then
        return query select false, r.format, r.record, $schema.lineage()
            from (select) as s left join $schema.head_record() as r on true;
        return;
    end if;
    if constants is not null then
        insert into $schema.constants (format, record) values (of_format, constants::jsonb)
            on conflict (one) do update set format = excluded.format, record = excluded.record;
    end if;
    if forgotten is not null then
        insert into $schema.forgotten (format, record) values (of_format, forgotten::jsonb)
            on conflict (one) do update set format = excluded.format, record = excluded.record;
    end if;
    if cardinality(gone_names) > 0 then
        delete from $schema.tables as t using unnest(gone_groups, gone_names) as n("group", name)
            where t."group" = n."group" and t.name = n.name;
    end if;
    if cardinality(put_names) > 0 then
        insert into $schema.tables ("group", name, format, record)
            select n."group", n.name, of_format, n.record::jsonb
                from unnest(put_groups, put_names, put_tables) as n("group", name, record)
            on conflict ("group", name)
                do update set format = excluded.format, record = excluded.record;
    end if;
    if cardinality(put_service_ids) > 0 then
        insert into $schema.services (id, format, record)
            select n.id::numeric, of_format, n.record::jsonb
                from unnest(put_service_ids, put_services) as n(id, record)
            on conflict (id) do update set format = excluded.format, record = excluded.record;
    end if;
    if cardinality(gone_services) > 0 then
        delete from $schema.services as t using unnest(gone_services) as n(id)
            where t.id = n.id::numeric;
    end if;
    if cardinality(put_origins) > 0 then
        insert into $schema.tombstones (origin, counter, format)
            select n.origin::numeric, n.counter::numeric, of_format
                from unnest(put_origins, put_counters) as n(origin, counter)
            on conflict (origin, counter) do update set format = excluded.format;
    end if;
    if cardinality(gone_origins) > 0 then
        delete from $schema.tombstones as t
            using unnest(gone_origins, gone_counters) as n(origin, counter)
            where t.origin = n.origin::numeric and t.counter = n.counter::numeric;
    end if;
    return query select true, null::smallint, null::text, $schema.lineage();
end $$;
