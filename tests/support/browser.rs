//! Chromium without a window, driven by the DevTools protocol over a pair of pipes
//! (`--remote-debugging-pipe`: JSON messages that end with a zero byte, in on 3, out on 4).
//!
//! It remembers what a page said on its console, what failed in it, and every address it asked for.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::SOON;

/// What one message may take to be answered.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["chromium", "chromium-browser"];

pub struct Browser {
    to: pipe::Sender,
    from: BufReader<pipe::Receiver>,
    session: Option<String>,
    sent: u64,
    /// Console messages and exceptions of the page.
    pub complaints: Vec<String>,
    pub requested: Vec<String>,
    _child: Child,
    _profile: tempfile::TempDir,
}

/// The width and height of a page in CSS pixels.
pub const DESK: (u32, u32) = (1200, 900);
pub const PHONE: (u32, u32) = (390, 844);

impl Browser {
    pub async fn start() -> Browser {
        let profile = tempfile::Builder::new().prefix("anechoic-browser-").tempdir().unwrap();
        let ((theirs_in, to), (from, theirs_out)) = (pipe_pair(), pipe_pair());
        let program = NAMES.into_iter().find(|name| on_path(name));
        let program = program.expect("the dashboard is tested in Chromium: apt-get install chromium");
        let mut command = Command::new(program);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let ends: [RawFd; 2] = [theirs_in.as_raw_fd(), theirs_out.as_raw_fd()];
        // SAFETY: only dup and fcntl between fork and exec; the descriptors outlive the spawn.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first: 3 or 4 may be the other one.
                let [reads, writes] = ends.map(|fd| libc::fcntl(fd, libc::F_DUPFD, 10));
                match reads < 0 || writes < 0 || libc::dup2(reads, 3) < 0 || libc::dup2(writes, 4) < 0 {
                    true => Err(std::io::Error::last_os_error()),
                    false => Ok(()),
                }
            });
        }
        let child = command.spawn().unwrap();
        drop((theirs_in, theirs_out));
        let mut browser = Browser {
            to: pipe::Sender::from_owned_fd(to).unwrap(),
            from: BufReader::new(pipe::Receiver::from_owned_fd(from).unwrap()),
            session: None,
            sent: 0,
            complaints: Vec::new(),
            requested: Vec::new(),
            _child: child,
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        browser.size(DESK).await;
        browser
    }

    /// The answer to one command; events that come in between are remembered.
    pub async fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).await.unwrap();
        let exchange = async {
            loop {
                let mut answer = Vec::new();
                self.from.read_until(0, &mut answer).await.unwrap();
                assert_eq!(answer.pop(), Some(0), "the browser has gone");
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                if answer["id"] == json!(self.sent) {
                    return answer;
                }
                remember(&answer, &mut self.complaints, &mut self.requested);
            }
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("{method}: no answer"));
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].clone()
    }

    pub async fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(answer["errorText"].is_null(), "{url}: {answer}");
        self.until("document.readyState === 'complete'").await;
    }

    pub async fn size(&mut self, (width, height): (u32, u32)) {
        let mobile = width < 600;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": mobile });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    pub async fn scheme(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// The value of a JavaScript expression.
    pub async fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params).await;
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true; what the page shows is told where it never is.
    #[track_caller]
    pub fn until(&mut self, expression: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        let expression = format!("Boolean({expression})");
        async move {
            let deadline = tokio::time::Instant::now() + SOON;
            while self.value(&expression).await != json!(true) {
                if tokio::time::Instant::now() > deadline {
                    let shown = self.value("document.body.innerText").await;
                    let (shown, complaints) = (shown.as_str().unwrap_or_default(), &self.complaints);
                    panic!("{place}: never: {expression}; the page says {complaints:?}, and shows:\n{shown}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Presses what has this accessible name, as a mouse would.
    pub async fn press(&mut self, name: &str) {
        let find = format!(
            "(() => {{ const scope = document.querySelector('dialog[open]') ?? document; \
             const all = [...scope.querySelectorAll('button, a')]; \
             const found = all.filter(e => (e.getAttribute('aria-label') ?? e.textContent).trim() === {name:?} && e.checkVisibility()); \
             if (found.length !== 1) return null; found[0].scrollIntoView({{ block: 'center' }}); \
             const box = found[0].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()"
        );
        let place = self.value(&find).await;
        assert!(place.is_array(), "there is not one button named {name:?}");
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", click).await;
        }
    }

    pub async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text })).await;
    }

    /// Roles that people act on, or look for, whose name is empty.
    pub async fn nameless(&mut self) -> Vec<String> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let named =
            ["button", "link", "textbox", "table", "region", "img", "progressbar", "article", "dialog", "heading"];
        let nodes = tree["nodes"].as_array().unwrap();
        let of_interest = nodes.iter().filter(|node| node["ignored"] != json!(true));
        let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
        let wanted = of_interest.filter(|node| named.contains(&&*role(node)));
        wanted.filter(|node| node["name"]["value"].as_str().unwrap_or_default().is_empty()).map(role).collect()
    }

    /// What a page must never ask its reader to do.
    pub async fn scrolls_sideways(&mut self) -> bool {
        self.value("document.documentElement.scrollWidth > innerWidth").await == json!(true)
    }

    /// For people to look at: written where `ANECHOIC_SCREENSHOTS` names a directory.
    pub async fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("ANECHOIC_SCREENSHOTS") else { return };
        let answer = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let picture = BASE64_STANDARD.decode(answer["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&dir).join(format!("{name}.png")), picture).unwrap();
    }
}

fn remember(event: &Value, complaints: &mut Vec<String>, requested: &mut Vec<String>) {
    let params = &event["params"];
    match event["method"].as_str().unwrap_or_default() {
        "Runtime.consoleAPICalled" => complaints.push(params["args"].to_string()),
        "Runtime.exceptionThrown" => complaints.push(params["exceptionDetails"].to_string()),
        "Log.entryAdded" => complaints.push(params["entry"].to_string()),
        "Network.requestWillBeSent" => {
            requested.extend(params["request"]["url"].as_str().map(str::to_owned));
        }
        _ => {}
    }
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Read end, write end; neither is inherited.
fn pipe_pair() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both descriptors, which nobody else owns yet.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "{}", std::io::Error::last_os_error());
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    }
}
