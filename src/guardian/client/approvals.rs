//! What the command line asks and answers about approvals.

use hyper::Method;
use serde::de::IgnoredAny;

use super::{ClientError, Guardian};
use crate::approval::{Answer, RequestId, Settled, Snapshot};
use crate::guardian::control::api::{Calls, Forget, Forgotten, PageLink};
use crate::name::CloisterName;

impl Guardian {
    /// Asks what waits and what was decided. With the version that the caller has, it comes when that has changed, or
    /// after 20 s; meanwhile the caller counts as one who looks.
    pub async fn approvals(&self, since: Option<u64>) -> Result<Snapshot, ClientError> {
        let path =
            since.map_or_else(|| "/approvals".to_owned(), |version| format!("/approvals?since={version}"));
        self.ask(Method::GET, &path, Vec::new()).await
    }

    /// Answers a request.
    pub async fn answer(&self, id: &RequestId, answer: &Answer) -> Result<Settled, ClientError> {
        let body = serde_json::to_vec(answer).map_err(ClientError::Answer)?;
        self.ask(Method::POST, &format!("/approvals/{id}"), body).await
    }

    /// Takes an answer back.
    pub async fn undo_approval(&self, id: &RequestId) -> Result<(), ClientError> {
        let IgnoredAny = self.ask(Method::POST, &format!("/approvals/{id}/undo"), Vec::new()).await?;
        Ok(())
    }

    /// Takes remembered answers back.
    pub async fn forget(&self, forget: &Forget) -> Result<Forgotten, ClientError> {
        let body = serde_json::to_vec(forget).map_err(ClientError::Answer)?;
        self.ask(Method::POST, "/forget", body).await
    }

    /// Asks for a link that logs a browser in, once.
    pub async fn page_link(&self) -> Result<String, ClientError> {
        let PageLink { url } = self.ask(Method::POST, "/page/link", Vec::new()).await?;
        Ok(url)
    }

    /// Asks how many requests of a cloister came that nobody looked at; the answer comes when it is another number than
    /// `since`, or after 20 s.
    pub async fn calls(&self, cloister: &CloisterName, since: u64) -> Result<u64, ClientError> {
        let path = format!("/approvals/calls?cloister={cloister}&since={since}");
        let Calls { number } = self.ask(Method::GET, &path, Vec::new()).await?;
        Ok(number)
    }
}
