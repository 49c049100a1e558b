//! [`BindStore`] for `Arc<T>` and `Box<dyn BindStore>`: each call goes to what is inside.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    Applied, Batch, BindStore, Candidate, Head, Leadership, Renewal, StoreState, WriteAck,
};
use crate::error::Result;
use crate::id::{Epoch, WriteNumber};

macro_rules! forward {
    ($($generics:tt)*) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        $($generics)* {
            fn describe(&self) -> String {
                (**self).describe()
            }

            async fn load(&self) -> Result<StoreState> {
                (**self).load().await
            }

            async fn acquire_leadership(
                &self,
                candidate: &Candidate,
                ttl: Duration,
            ) -> Result<Leadership> {
                (**self).acquire_leadership(candidate, ttl).await
            }

            async fn renew(&self, epoch: Epoch) -> Result<Renewal> {
                (**self).renew(epoch).await
            }

            async fn resign(&self, epoch: Epoch) -> Result<()> {
                (**self).resign(epoch).await
            }

            async fn write(
                &self,
                epoch: Epoch,
                number: WriteNumber,
                batch: &Batch,
            ) -> Result<WriteAck> {
                (**self).write(epoch, number, batch).await
            }

            async fn applied(&self) -> Result<Applied> {
                (**self).applied().await
            }

            async fn head(&self) -> Result<Option<Head>> {
                (**self).head().await
            }

            async fn wait_for_change(&self, poll: Duration) -> Result<()> {
                (**self).wait_for_change(poll).await
            }
        }
    };
}

forward!(impl<S: BindStore + ?Sized> BindStore for std::sync::Arc<S>);
// Not for every `Box<S>`: that could be an `Exclusive` of another crate.
forward!(impl BindStore for Box<dyn BindStore>);
