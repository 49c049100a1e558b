//! [`Gate`]: the check of callers, and the mark of this node's cluster in responses (T3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockservice_core::store::{Cluster, ClusterId};
use lockservice_core::{Error, ErrorKind, Result};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::convert::{CLUSTER, cluster_from_metadata, cluster_to_metadata, to_status};

/// The number of refused calls that share one line in the log.
const REFUSED_PER_LINE: u64 = 1_000;

/// Admits calls, and turns their results into responses.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Option<Arc<Members>>);

/// The nodes of a cluster.
#[derive(Debug)]
struct Members {
    cluster: watch::Receiver<Option<Cluster>>,
    /// `Relaxed`, without a partner: it only counts.
    refused: AtomicU64,
}

impl Gate {
    /// A gate that admits every caller.
    pub(crate) fn open() -> Self {
        Self(None)
    }

    /// A gate for nodes of `cluster`, to which this node belongs. All other callers are refused,
    /// and every response names the cluster.
    pub(crate) fn members_of(cluster: watch::Receiver<Option<Cluster>>) -> Self {
        Self(Some(Arc::new(Members { cluster, refused: AtomicU64::new(0) })))
    }

    /// Makes a call, if the caller is admitted.
    pub(crate) async fn pass<Q, A, F>(
        &self,
        request: Request<Q>,
        call: impl FnOnce(Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A>>,
    {
        let own =
            self.0.as_ref().and_then(|members| members.cluster.borrow().map(|cluster| cluster.id));
        let outcome = match &self.0 {
            Some(members) => members.check(own, request.metadata()),
            None => Ok(()),
        };
        let outcome = match outcome {
            Ok(()) => call(request.into_inner()).await,
            Err(e) => Err(e),
        };
        let own = own.map(cluster_to_metadata);
        match outcome {
            Ok(response) => {
                let mut wrapped = Response::new(response);
                own.map(|own| wrapped.metadata_mut().insert(CLUSTER, own));
                Ok(wrapped)
            }
            Err(e) => {
                let mut status = to_status(&e);
                own.map(|own| status.metadata_mut().insert(CLUSTER, own));
                Err(status)
            }
        }
    }
}

impl Members {
    /// Fails unless the call comes from a node of this node's cluster.
    fn check(&self, own: Option<ClusterId>, request: &MetadataMap) -> Result<()> {
        let Some(own) = own else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "this node does not know its cluster yet: try again",
            ));
        };
        let caller = cluster_from_metadata(request);
        if caller == Some(own) {
            return Ok(());
        }
        let caller = caller.map_or_else(|| "none".to_owned(), |caller| caller.to_string());
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(REFUSED_PER_LINE) {
            tracing::warn!(
                %own,
                %caller,
                refused_before = before,
                "refused a call that does not come from this cluster"
            );
        }
        Err(Error::new(
            ErrorKind::NotPermitted,
            "this call is for nodes of one cluster, and this node belongs to another",
        )
        .with("cluster", own)
        .with("caller", caller))
    }
}
