//! Two servers that want the same thing.

use integration::on_each_store;
use integration::server::Place;
use integration::store::StoreKind;

on_each_store! {
    a_second_server_on_one_store_ends_at_once_naming_the_path_and_what_to_do;
    a_second_server_on_one_port_ends_at_once_and_leaves_the_store_alone;
}

mod check {
    use super::*;

    /// L1: opening is the leadership.
    pub(super) async fn a_second_server_on_one_store_ends_at_once_naming_the_path_and_what_to_do(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let mut elsewhere = Place::new(store);
        elsewhere.store.clone_from(&place.store);
        let output = place.run(&mut elsewhere.serve()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{said}");
        let (_, path) = place.store.split_once(':').expect("a URL");
        assert!(said.contains(path), "it names {path}: {said}");
        assert!(said.contains("stop"), "it says what to do: {said}");
        assert!(output.stdout.is_empty(), "it never was ready");
        drop(place.client().await.session(None).await.expect("the first serves on"));
        assert!(server.stop().await.success());
    }

    pub(super) async fn a_second_server_on_one_port_ends_at_once_and_leaves_the_store_alone(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let mut elsewhere = Place::new(store);
        elsewhere.address.clone_from(&place.address);
        let output = place.run(&mut elsewhere.serve()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(71), "{said}");
        assert!(said.contains(&place.address) && said.contains("another port"), "{said}");
        assert!(output.stdout.is_empty(), "it never was ready");
        let (_, path) = elsewhere.store.split_once(':').expect("a URL");
        assert!(!std::path::Path::new(path).exists(), "nothing was made of its store");
        assert!(server.stop().await.success());
    }
}
