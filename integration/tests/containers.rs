//! The harness of `integration::containers` itself: each fault does what it says, and is over when
//! it is said to be.

use std::time::Duration;

use integration::containers::{
    Cluster, ClusterOptions, Postgres, PostgresOptions, Redis, RedisOptions, Sentinel,
    SentinelOptions,
};
use integration::{within, within_limit};
use redis::AsyncCommands as _;
use sqlx::{Connection as _, PgConnection, Row as _};

/// What a server that does nothing at all is given to answer.
const SILENCE: Duration = Duration::from_secs(1);

async fn connect(url: &str) -> PgConnection {
    within("a connection", PgConnection::connect(url))
        .await
        .expect("PostgreSQL accepts a connection")
}

async fn count(url: &str) -> i64 {
    let mut connection = connect(url).await;
    let row =
        within("a count", sqlx::query("SELECT count(*) FROM kept").fetch_one(&mut connection))
            .await;
    row.expect("the table is there").get(0)
}

async fn create(url: &str) -> PgConnection {
    let mut connection = connect(url).await;
    for statement in ["CREATE TABLE kept (value text)", "INSERT INTO kept VALUES ('a')"] {
        sqlx::query(statement).execute(&mut connection).await.expect("it is written");
    }
    connection
}

async fn client(url: &str) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url).expect("a URL");
    within("a connection", client.get_multiplexed_async_connection())
        .await
        .expect("Redis accepts a connection")
}

/// True if the container is still known to Docker.
fn exists(id: &str) -> bool {
    let output = std::process::Command::new("docker")
        .args(["inspect", id])
        .output()
        .expect("docker can be run");
    output.status.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_postgres_is_silent_and_then_goes_on_where_it_was() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    let mut connection = create(postgres.url()).await;
    postgres.pause().await;
    let pending = tokio::spawn(async move {
        sqlx::query("INSERT INTO kept VALUES ('b')").execute(&mut connection).await
    });
    tokio::time::sleep(SILENCE).await;
    assert!(!pending.is_finished(), "a paused server neither responds nor fails");
    postgres.unpause().await;
    within("the response", pending).await.expect("no panic").expect("the connection has survived");
    assert_eq!(count(postgres.url()).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_is_killed_or_stopped_comes_back_at_its_url_with_its_data() {
    let Some(postgres) = Postgres::start(PostgresOptions::default()).await else { return };
    let mut connection = create(postgres.url()).await;
    postgres.kill().await;
    let pending = within("an error", sqlx::query("SELECT 1").execute(&mut connection)).await;
    assert!(pending.is_err(), "a dead server does not respond");
    assert!(
        within("an error", PgConnection::connect(postgres.url())).await.is_err(),
        "nor does it accept connections"
    );
    postgres.start().await;
    assert_eq!(count(postgres.url()).await, 1);
    assert!(postgres.log().await.contains("not properly shut down"), "it was killed, not stopped");

    // A stop waits for no client.
    let open = connect(postgres.url()).await;
    within_limit(Duration::from_secs(9), "a fast shutdown", postgres.stop()).await;
    drop(open);
    assert!(within("an error", PgConnection::connect(postgres.url())).await.is_err());
    postgres.start().await;
    assert_eq!(count(postgres.url()).await, 1);
    assert_eq!(
        postgres.log().await.matches("not properly shut down").count(),
        1,
        "it was stopped cleanly"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_has_its_settings_and_runs_commands() {
    let options = PostgresOptions {
        settings: vec![("max_connections", "17".into())],
        ..PostgresOptions::default()
    };
    let Some(postgres) = Postgres::start(options).await else { return };
    let row = sqlx::query("SHOW max_connections")
        .fetch_one(&mut connect(postgres.url()).await)
        .await
        .expect("a response");
    assert_eq!(row.get::<String, _>(0), "17");
    let row = sqlx::query("SHOW server_version")
        .fetch_one(&mut connect(postgres.url()).await)
        .await
        .expect("a response");
    assert!(row.get::<String, _>(0).starts_with("15."), "the version that is promised");
    let (status, output) = postgres.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
    assert_eq!((status, output.as_str()), (3, "out\nerr\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_whose_disk_is_full_says_so_until_there_is_room() {
    let options =
        PostgresOptions { data_bytes_max: Some(150_000_000), ..PostgresOptions::default() };
    let Some(postgres) = Postgres::start(options).await else { return };
    let mut connection = create(postgres.url()).await;
    // More than the pages that it has, less than the log that it has.
    let much = "INSERT INTO kept SELECT repeat('x', 100) FROM generate_series(1, 20000)";
    postgres.fill_disk().await;
    let error = within("an error", sqlx::query(much).execute(&mut connection))
        .await
        .expect_err("there is no room");
    let code =
        error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    assert_eq!(code.as_deref(), Some("53100"), "{error}");
    postgres.free_disk().await;
    within("the response", sqlx::query(much).execute(&mut connection))
        .await
        .expect("there is room again");
    assert_eq!(count(postgres.url()).await, 20_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_with_tls_is_known_by_its_authority_only() {
    let options = PostgresOptions { tls: true, ..PostgresOptions::default() };
    let Some(postgres) = Postgres::start(options.clone()).await else { return };
    let mut connection = connect(&postgres.tls_url()).await;
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(
        sqlx::query(query).fetch_one(&mut connection).await.expect("a response").get::<bool, _>(0)
    );
    let unknown = format!("{}?sslmode=verify-full", postgres.url());
    assert!(
        within("an error", PgConnection::connect(&unknown)).await.is_err(),
        "this machine knows no such authority"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_pauses_dies_and_comes_back_with_what_was_synced() {
    let Some(redis) = Redis::start(RedisOptions::durable()).await else { return };
    let mut connection = client(redis.url()).await;
    let version: String =
        redis::cmd("INFO").arg("server").query_async(&mut connection).await.expect("a response");
    assert!(version.contains("redis_version:7.0."), "the version that is promised: {version}");
    let () = connection.set("key", 7).await.expect("it is written");

    redis.pause().await;
    let patient =
        redis::AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let opened = redis::Client::open(redis.url()).expect("a URL");
    let pending = tokio::spawn(async move {
        opened
            .get_multiplexed_async_connection_with_config(&patient)
            .await?
            .incr::<_, _, i64>("key", 1)
            .await
    });
    tokio::time::sleep(SILENCE).await;
    assert!(!pending.is_finished(), "a paused server neither responds nor fails");
    redis.unpause().await;
    assert_eq!(
        within("the response", pending)
            .await
            .expect("no panic")
            .expect("the connection has survived"),
        8
    );

    redis.kill().await;
    let pending = within("an error", connection.get::<_, i64>("key")).await;
    assert!(pending.is_err(), "a dead server does not respond");
    redis.start().await;
    assert_eq!(client(redis.url()).await.get::<_, i64>("key").await.expect("a response"), 8);
    redis.stop().await;
    assert!(
        redis::Client::open(redis.url())
            .expect("a URL")
            .get_multiplexed_async_connection()
            .await
            .is_err()
    );
    redis.start().await;
    assert_eq!(client(redis.url()).await.get::<_, i64>("key").await.expect("a response"), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_keeps_nothing_forgets_everything_when_it_is_killed() {
    let options =
        RedisOptions { arguments: vec!["--save".into(), String::new()], data_bytes_max: None };
    let Some(redis) = Redis::start(options).await else { return };
    let () = client(redis.url()).await.set("key", 7).await.expect("it is written");
    redis.kill().await;
    redis.start().await;
    assert_eq!(
        client(redis.url()).await.get::<_, Option<i64>>("key").await.expect("a response"),
        None
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_master_is_replaced_by_a_replica_that_clients_can_reach() {
    let Some(group) = Sentinel::start(SentinelOptions::default()).await else { return };
    assert_eq!(group.master(0).await, 0);
    let () = client(&group.server_urls()[0]).await.set("key", 7).await.expect("it is written");
    let mut connection = client(&group.server_urls()[0]).await;
    let copies: i64 = redis::cmd("WAIT")
        .arg(1)
        .arg(20_000)
        .query_async(&mut connection)
        .await
        .expect("a response");
    assert_eq!(copies, 1, "the replica has it");
    group.server(0).kill().await;
    let new = group.wait_for_another_master(0).await;
    assert_eq!(
        client(&group.server_urls()[new]).await.get::<_, i64>("key").await.expect("a response"),
        7
    );

    // The driver finds it through the sentinels.
    let name = Sentinel::MASTER_NAME.to_owned();
    let mut sentinel = redis::sentinel::SentinelClient::build(
        group.sentinel_urls(),
        name,
        None,
        redis::sentinel::SentinelServerType::Master,
    )
    .expect("URLs");
    let mut master = within("the master", Box::pin(sentinel.get_async_connection()))
        .await
        .expect("there is a master");
    let () = master.set("key", 8).await.expect("the new master takes writes");
    group.server(0).start().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_reached_at_every_node_and_outlives_a_master_that_has_a_replica() {
    let options = ClusterOptions {
        replicas: 1,
        node_timeout: Duration::from_secs(1),
        ..ClusterOptions::default()
    };
    let Some(cluster) = Cluster::start(options).await else { return };
    let driver = redis::cluster::ClusterClient::new(cluster.urls()).expect("URLs");
    let mut connection = within("a connection", Box::pin(driver.get_async_connection()))
        .await
        .expect("a connection");
    for number in 0..100_i64 {
        let () = connection.set(format!("key{number}"), number).await.expect("it is written");
    }
    let place = cluster.master_of(0, "key0").await;
    cluster.node(place).pause().await;
    let other = (place + 1) % cluster.urls().len();
    within("a replica takes over", async {
        while cluster.master_of(other, "key0").await == place {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    cluster.node(place).unpause().await;
    let () = within("the driver finds the new master", connection.set("key0", 1))
        .await
        .expect("it is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_goes_with_its_value_also_in_a_panic_and_paused() {
    let Some(first) = Redis::start(RedisOptions::default()).await else { return };
    let id = first.id().to_owned();
    let task = tokio::spawn(async move {
        first.pause().await;
        assert!(first.url().is_empty(), "a test that fails, on purpose");
    });
    assert!(task.await.expect_err("it panics").is_panic());
    assert!(!exists(&id), "nothing stays behind");
}
