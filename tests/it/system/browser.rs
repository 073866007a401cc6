//! A real browser: headless Chromium, driven through `chromedriver`.
//!
//! Each test has a browser of its own with a fresh profile; all of it ends with the value. Waiting is for a state and
//! has a deadline; [`Browser::quiet`] ends a test: the console shows every breach of the content policy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use fantoccini::actions::{InputSource, KeyAction, KeyActions, MouseActions, PointerAction};
use fantoccini::elements::Element;
use fantoccini::error::CmdError;
use fantoccini::wd::WindowHandle;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::harness::plain;
use crate::requirement;

mod driver;
mod page;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often it is looked whether something has come.
const LOOK: Duration = Duration::from_millis(10);

/// What Chromium is started with: as root, without a screen, and without a word to anybody.
const ARGUMENTS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1000,800",
    // It ends with its driver, however that ends.
    "--remote-debugging-pipe",
];

/// How a browser is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Pages run no script.
    pub(crate) is_without_script: bool,
    /// A rule for names, such as `MAP a.test 127.0.0.1`.
    pub(crate) names: Option<String>,
}

/// A browser with its driver.
pub(crate) struct Browser {
    runtime: Runtime,
    client: Client,
    session: String,
    port: u16,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one; `None`, with the reason told, where Chromium or its driver is missing.
    pub(crate) fn start() -> Option<Self> {
        Self::with(&Setup::default())
    }

    pub(crate) fn with(setup: &Setup) -> Option<Self> {
        if let Some(missing) =
            ["/usr/bin/chromium", "/usr/bin/chromedriver"].iter().find(|path| !Path::new(path).exists())
        {
            requirement::skip("chromium", &format!("there is no `{missing}`"));
            return None;
        }
        let profile = tempfile::Builder::new().prefix("cl").tempdir_in("/tmp").unwrap();
        let (driver, port) = start_driver(profile.path());
        let runtime = Runtime::new().unwrap();
        let capabilities = capabilities(profile.path(), setup);
        let connected = runtime.block_on(async {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            let address = format!("http://127.0.0.1:{port}");
            let client = builder.capabilities(capabilities).connect(&address).await.unwrap();
            let session = client.session_id().await.unwrap().unwrap();
            (client, session)
        });
        let (client, session) = connected;
        Some(Self { runtime, client, session, port, driver, _profile: profile })
    }

    /// Opens a page.
    #[track_caller]
    pub(crate) fn open(&self, url: &str) {
        self.runtime.block_on(self.client.goto(url)).unwrap();
    }

    pub(crate) fn reload(&self) {
        self.runtime.block_on(self.client.refresh()).unwrap();
    }

    pub(crate) fn address(&self) -> String {
        self.runtime.block_on(self.client.current_url()).unwrap().to_string()
    }

    pub(crate) fn title(&self) -> String {
        self.runtime.block_on(self.client.title()).unwrap()
    }

    /// The value of a script's `return`, at once.
    #[track_caller]
    pub(crate) fn script(&self, script: &str) -> Value {
        self.runtime.block_on(self.client.execute(script, Vec::new())).unwrap()
    }

    /// Waits for an element.
    #[track_caller]
    pub(crate) fn find(&self, selector: &str) -> Element {
        self.until(&format!("`{selector}`"), || {
            let found = self.runtime.block_on(self.client.find_all(Locator::Css(selector))).unwrap();
            found.into_iter().next()
        })
    }

    /// How many of these are there now.
    #[track_caller]
    pub(crate) fn count(&self, selector: &str) -> usize {
        self.runtime.block_on(self.client.find_all(Locator::Css(selector))).unwrap().len()
    }

    /// Waits until no such element is there.
    #[track_caller]
    pub(crate) fn gone(&self, selector: &str) {
        self.until(&format!("no `{selector}`"), || (self.count(selector) == 0).then_some(()));
    }

    /// The text that an element shows, as soon as it is there.
    #[track_caller]
    pub(crate) fn text(&self, selector: &str) -> String {
        self.attempt(&format!("the text of `{selector}`"), || async {
            self.client.find(Locator::Css(selector)).await?.text().await
        })
    }

    /// Waits until an element shows a text with this part.
    #[track_caller]
    pub(crate) fn shows(&self, selector: &str, part: &str) {
        self.until(&format!("`{part}` in `{selector}`"), || self.text(selector).contains(part).then_some(()));
    }

    /// Clicks an element as soon as it can be clicked.
    #[track_caller]
    pub(crate) fn click(&self, selector: &str) {
        self.until(&format!("`{selector}` to click"), || {
            let element = self.find(selector);
            self.runtime.block_on(element.is_enabled()).unwrap_or(false).then_some(())
        });
        self.attempt(&format!("a click on `{selector}`"), || async {
            self.client.find(Locator::Css(selector)).await?.click().await
        });
    }

    /// Presses a key and lets it go; the special ones are those of `WebDriver`.
    #[track_caller]
    pub(crate) fn press(&self, key: &str) {
        let value = key.chars().next().unwrap();
        let keys = KeyActions::new("keys".to_owned());
        let keys = keys.then(KeyAction::Down { value }).then(KeyAction::Up { value });
        self.runtime.block_on(self.client.perform_actions(keys)).unwrap();
    }

    /// Makes the page this wide and high.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        let size = json!({"cmd": "Emulation.setDeviceMetricsOverride",
            "params": {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}});
        self.command("goog/cdp/execute", &size);
    }

    /// Moves the pointer over an element.
    #[track_caller]
    pub(crate) fn hover(&self, selector: &str) {
        self.attempt(&format!("the pointer over `{selector}`"), || async {
            let element = self.client.find(Locator::Css(selector)).await?;
            let over = PointerAction::MoveToElement { element, duration: None, x: 0.0, y: 0.0 };
            self.client.perform_actions(MouseActions::new("mouse".to_owned()).then(over)).await
        });
    }

    /// Waits until a script's `return` is true.
    #[track_caller]
    pub(crate) fn holds(&self, script: &str) {
        self.until(script, || (self.script(script) == json!(true)).then_some(()));
    }

    /// Opens another tab and goes there; gives the one before.
    pub(crate) fn new_tab(&self) -> WindowHandle {
        self.runtime.block_on(async {
            let before = self.client.window().await.unwrap();
            let tab = self.client.new_window(true).await.unwrap();
            self.client.switch_to_window(tab.handle).await.unwrap();
            before
        })
    }

    /// Goes to a tab; gives the one before.
    pub(crate) fn switch(&self, tab: WindowHandle) -> WindowHandle {
        self.runtime.block_on(async {
            let before = self.client.window().await.unwrap();
            self.client.switch_to_window(tab).await.unwrap();
            before
        })
    }

    /// Does a command of the driver that has no method here.
    pub(crate) fn command(&self, name: &str, body: &Value) -> Value {
        driver::post(self.port, &format!("/session/{}/{name}", self.session), body)
    }

    /// Takes the complaints of the console since the last time.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let entries = self.command("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().unwrap().iter();
        let bad = entries.filter(|entry| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING")));
        bad.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Checks that the console has no complaint.
    #[track_caller]
    pub(crate) fn quiet(&self) {
        assert_eq!(self.complaints(), [] as [&str; 0]);
    }

    /// Tries until something is there.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = attempt() {
                return found;
            }
            assert!(Instant::now() < end, "waited for {what}; the page shows: {}", self.page());
            std::thread::sleep(LOOK);
        }
    }

    /// Tries until no element is in the way any more, or replaced in this moment.
    #[track_caller]
    fn attempt<T, F: Future<Output = Result<T, CmdError>>>(&self, what: &str, action: impl Fn() -> F) -> T {
        self.until(what, || match self.runtime.block_on(action()) {
            Ok(done) => Some(done),
            Err(CmdError::Standard(_)) => None,
            Err(error) => panic!("{what}: {error}"),
        })
    }

    fn page(&self) -> String {
        let text =
            self.script("return location.href + '\\n' + document.title + '\\n' + document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; a test that failed may have lost it.
        let _ = self.runtime.block_on(self.client.clone().close());
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Starts the driver on a port that is free.
fn start_driver(home: &Path) -> (Child, u16) {
    let mut command = plain("chromedriver");
    command.arg("--port=0").env("HOME", home).env("TMPDIR", home);
    let mut driver =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let port = lines.map_while(Result::ok).find_map(|line| {
        line.strip_prefix("ChromeDriver was started successfully on port ")?
            .trim_end_matches('.')
            .parse()
            .ok()
    });
    (driver, port.unwrap())
}

fn capabilities(profile: &Path, setup: &Setup) -> serde_json::Map<String, Value> {
    let mut arguments: Vec<String> = ARGUMENTS.map(str::to_owned).to_vec();
    arguments.push(format!("--user-data-dir={}", profile.join("profile").display()));
    arguments.extend(setup.names.iter().map(|names| format!("--host-resolver-rules={names}")));
    let mut options = json!({"binary": "/usr/bin/chromium", "args": arguments});
    if setup.is_without_script {
        options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
    }
    let wanted = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
    wanted.as_object().unwrap().clone()
}
