//! Tests of the page over a real loopback socket, with a desk that has no guardian behind it.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Page;
use browser::Browser;
use desk::FakeDesk;

mod answers;
mod browser;
mod desk;
mod gate;
mod live;
mod login;
mod pages;

/// A page that is served, and its desk.
struct Served {
    page: Arc<Page>,
    desk: Arc<FakeDesk>,
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Served {
    /// Starts on a port that no other test asks for.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let state = format!("{{\"port\": {free}, \"sessions\": []}}");
        std::fs::write(directory.path().join("page.json"), state).unwrap();
        Self::start_in(directory)
    }

    fn start_in(directory: TempDir) -> Self {
        let desk = FakeDesk::new(directory.path());
        let page = Page::bind(&directory.path().join("page.json"), desk.clone()).unwrap();
        let page = Arc::new(page);
        let (stop, stopped) = oneshot::channel::<()>();
        let own = Arc::clone(&page);
        let task = tokio::spawn(async move { own.serve(async { drop(stopped.await) }).await });
        Self { page, desk, directory, stop: Some(stop), task }
    }

    /// Ends the page and frees its port; what it kept stays.
    async fn stop(mut self) -> TempDir {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
        self.directory
    }

    /// A browser that nobody has logged in.
    fn stranger(&self) -> Browser {
        Browser::new(self.page.address())
    }

    /// A browser that is logged in and has loaded the page.
    async fn browser(&self) -> Browser {
        let mut browser = self.stranger();
        let link = self.page.login_link().unwrap();
        let code = link.rsplit('/').next().unwrap();
        let answer = browser.get(&format!("/login/{code}")).await;
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "{answer:?}");
        browser.take_cookie(&answer);
        browser.take_token(&browser.get("/").await);
        browser
    }
}
