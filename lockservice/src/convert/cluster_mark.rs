//! The cluster of a node, in the metadata of its calls and responses.

use lockservice_core::store::ClusterId;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

/// The metadata that names the cluster of the caller, or of the responder.
pub(crate) const CLUSTER: &str = "lockservice-cluster";

/// A cluster's id as metadata.
pub(crate) fn cluster_to_metadata(cluster: ClusterId) -> AsciiMetadataValue {
    cluster.to_string().parse().expect("hexadecimal digits")
}

/// The cluster in the metadata, if they name one.
pub(crate) fn cluster_from_metadata(metadata: &MetadataMap) -> Option<ClusterId> {
    metadata.get(CLUSTER)?.to_str().ok()?.parse().ok()
}
