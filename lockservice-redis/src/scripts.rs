//! The scripts: one for each operation, each one atomic step.
//!
//! # What is stored
//! One hash, so that it is evicted, expired or deleted as a whole (which is noticed, L4) or not at
//! all, and so that a Cluster moves it as a whole.
//!
//! | field | value |
//! |---|---|
//! | `format` | the layout's version, in decimal digits |
//! | `head/epoch`, `head/applied`, `head/counter` | how far the leadership and the store have come, in decimal digits; compared as text |
//! | `head/led` | `1`; absent after a resignation |
//! | `head/record` | the head as it was when the leadership was acquired; the fields above count instead of what it says of them |
//! | any other | a record under the key of `lockservice_core::store::changes` |
//!
//! # To ensure correctness
//! - Each script finds out on which copy it runs (L4) and refuses on a replica, also on one that
//!   accepts writes.
//! - Each checks everything before its first write. Redis refuses a script for memory, role or disk
//!   before it starts, never half-way.
//! - What keeps a leadership (acquire, renew, resign) replaces a few hundred bytes and may do so
//!   when memory is short: a full Redis delays binds, it does not end the validation of commits.

/// A script and the digest under which Redis keeps it.
pub(crate) struct Script {
    pub(crate) code: String,
    pub(crate) digest: String,
}

/// The scripts of a store, with their digests.
pub(crate) struct Scripts {
    pub(crate) read: Script,
    pub(crate) touch: Script,
    pub(crate) acquire: Script,
    pub(crate) renew: Script,
    pub(crate) resign: Script,
    pub(crate) write: Script,
}

/// Names the copy of the store (L4): the process that responds, and its line of replication.
const LINEAGE: &str = r"
local info = redis.call('INFO', 'server', 'replication')
if not string.find(info, '\nrole:master', 1, true) then
  return redis.error_reply('READONLY the store is read and written on the master only')
end
local run, line = string.match(info, '\nrun_id:(%w+)'), string.match(info, '\nmaster_replid:(%w+)')
if not run or not line then
  return redis.error_reply('ERR INFO names no run_id or master_replid')
end
local lineage = run .. '/' .. line
local function head()
  return redis.call('HMGET', KEYS[1], 'format', 'head/epoch', 'head/applied', 'head/counter',
    'head/led', 'head/record')
end
";

const READ: &str = r"
return {lineage, redis.call('TIME')[1], redis.call('HLEN', KEYS[1]), head()}
";

/// Reads, and writes what is there again: what a replica has of this, it has of everything before
/// it.
const TOUCH: &str = r"
local found = head()
if found[3] then
  redis.call('HSET', KEYS[1], 'head/applied', found[3])
end
return {lineage, redis.call('TIME')[1], redis.call('HLEN', KEYS[1]), found}
";

/// ARGV: the lineage and the six fields as they were read ('' for none); channel; the six fields as
/// they are to be.
const ACQUIRE: &str = r"
if lineage ~= ARGV[1] then
  return {lineage, 'race'}
end
local found = head()
for i = 1, 6 do
  if (found[i] or '') ~= ARGV[i + 1] then
    return {lineage, 'race'}
  end
end
redis.call('HSET', KEYS[1], 'format', ARGV[9], 'head/epoch', ARGV[10], 'head/applied', ARGV[11],
  'head/counter', ARGV[12], 'head/led', ARGV[13], 'head/record', ARGV[14])
redis.pcall('PUBLISH', ARGV[8], ARGV[10])
return {lineage, 'done'}
";

/// ARGV[1]: the epoch (L2).
const CHECK_EPOCH: &str = r"
local found = head()
if found[2] ~= ARGV[1] or not found[5] then
  return {lineage, 'fenced', found[2] or '0'}
end
";

const RENEW: &str = r"
redis.call('HINCRBY', KEYS[1], 'head/counter', 1)
return {lineage, 'done'}
";

/// ARGV[2]: the channel.
const RESIGN: &str = r"
redis.call('HDEL', KEYS[1], 'head/led')
redis.pcall('PUBLISH', ARGV[2], '')
return {lineage, 'done'}
";

/// ARGV[2..4]: the number before, the number, how many records to put; then those, field and value;
/// then the fields to delete.
const WRITE: &str = r"
if found[3] ~= ARGV[2] then
  return {lineage, 'number', found[3] or '0'}
end
-- A user who may not delete is refused here, not half-way: there is no such field.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], 'head/applied', ARGV[3])
local puts = tonumber(ARGV[4])
for i = 0, puts - 1 do
  redis.call('HSET', KEYS[1], ARGV[5 + 2 * i], ARGV[6 + 2 * i])
end
for i = 5 + 2 * puts, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
return {lineage, 'done'}
";

impl Scripts {
    pub(crate) fn new() -> Self {
        let script = |flags: &str, parts: &[&str]| {
            let code = format!("#!lua{flags}{}", parts.concat());
            Script { digest: redis::Script::new(&code).get_hash().to_owned(), code }
        };
        Self {
            read: script(" flags=no-writes", &[LINEAGE, READ]),
            touch: script(" flags=allow-oom", &[LINEAGE, TOUCH]),
            acquire: script(" flags=allow-oom", &[LINEAGE, ACQUIRE]),
            renew: script(" flags=allow-oom", &[LINEAGE, CHECK_EPOCH, RENEW]),
            resign: script(" flags=allow-oom", &[LINEAGE, CHECK_EPOCH, RESIGN]),
            write: script("", &[LINEAGE, CHECK_EPOCH, WRITE]),
        }
    }
}
