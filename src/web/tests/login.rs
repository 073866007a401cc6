//! Logging in and out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[tokio::test]
async fn a18_a_code_works_once_and_its_cookie_is_strict() {
    let served = Served::start();
    let stranger = served.stranger();
    let link = served.page.login_link().unwrap();
    let path = link.strip_prefix(&format!("http://{}", stranger.host())).unwrap();
    assert_eq!(path.len(), "/login/".len() + 64, "32 bytes");
    let answer = stranger.get(path).await;
    let cookie = answer.header("set-cookie").unwrap();
    let (secret, attributes) = cookie.split_once(';').unwrap();
    assert_eq!(attributes, " HttpOnly; SameSite=Strict; Path=/; Max-Age=604800");
    let name = format!("cloister_session_{}=", served.page.address().port());
    assert!(secret.starts_with(&name), "{secret}");
    let again = stranger.get(path).await;
    assert_eq!((again.status, again.header("set-cookie")), (403, None));
    assert!(again.body.contains("cloister approvals open"), "{again:?}");
    assert!(!served.page.login_link().unwrap().contains(secret.split_once('=').unwrap().1));
}

#[tokio::test]
async fn a18_a_link_that_is_loaded_ahead_or_embedded_is_not_used_up() {
    let served = Served::start();
    let stranger = served.stranger();
    let link = served.page.login_link().unwrap();
    let path = format!("/login/{}", link.rsplit('/').next().unwrap());
    for headers in [
        "Sec-Purpose: prefetch\r\n",
        "Purpose: prefetch\r\n",
        "Sec-Fetch-Dest: image\r\nSec-Fetch-Mode: no-cors\r\n",
        "Sec-Fetch-Dest: iframe\r\nSec-Fetch-Mode: navigate\r\n",
        "Sec-Fetch-Dest: empty\r\nSec-Fetch-Mode: cors\r\n",
    ] {
        assert_eq!(stranger.get_with(&path, headers).await.status, 403, "{headers}");
    }
    let head = format!("HEAD {path} HTTP/1.0\r\nHost: {}\r\n\r\n", stranger.host());
    assert_eq!(stranger.raw(&head).await.status, 405);
    let own = "Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: none\r\n";
    assert_eq!(stranger.get_with(&path, own).await.status, 303);
}

#[tokio::test]
async fn a18_guesses_have_a_limit() {
    let served = Served::start();
    let stranger = served.stranger();
    let mut statuses = Vec::new();
    for number in 0..25 {
        statuses.push(stranger.get(&format!("/login/{number:064x}")).await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 403).count(), 20);
    assert_eq!(statuses.last(), Some(&429));
}

#[tokio::test]
async fn a_login_outlives_a_restart_and_only_its_hash_is_kept() {
    let served = Served::start();
    let browser = served.browser().await;
    let port = served.page.address().port();
    let directory = served.stop().await;
    let file = directory.path().join("page.json");
    let text = fs::read_to_string(&file).unwrap();
    let secret = browser.cookie().split_once('=').unwrap().1;
    assert!(!text.contains(secret) && !text.contains(&browser.token), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let served = Served::start_in(directory);
    assert_eq!(served.page.address().port(), port, "the port that it had");
    assert_eq!(browser.get("/").await.status, 200);
}

#[tokio::test]
async fn the_port_is_free_as_soon_as_the_page_ends() {
    let served = Served::start();
    let address = served.page.address();
    let page = Arc::clone(&served.page);
    let idle = served.stranger().open("GET / HTTP/1.0\r\n").await;
    served.browser().await;
    let directory = served.stop().await;
    std::net::TcpListener::bind(address).unwrap();
    drop((page, idle, directory));
}

#[tokio::test]
async fn logging_out_ends_the_session_for_good() {
    let served = Served::start();
    let browser = served.browser().await;
    let other = served.browser().await;
    let answer = browser.post("/logout", "").await;
    assert_eq!(answer.status, 303);
    assert!(answer.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/").await.status, 401);
    assert_eq!(other.get("/").await.status, 200);
    let directory = served.stop().await;
    let served = Served::start_in(directory);
    assert_eq!(browser.get("/").await.status, 401);
    drop(served);
}

#[tokio::test]
async fn a_broken_state_file_means_that_nobody_is_logged_in() {
    let served = Served::start();
    let browser = served.browser().await;
    let mut directory = served.stop().await;
    let file = directory.path().join("page.json");
    let good = fs::read_to_string(&file).unwrap();
    for broken in [
        "",
        "{",
        "[]",
        "{\"port\": 9999}",
        "\u{0}\u{1}",
        &good.replace("hash", "has"),
        &good[..good.len() / 2],
    ] {
        fs::write(&file, broken).unwrap();
        let served = Served::start_in(directory);
        let same = Browser::new(served.page.address()).with_cookie(browser.cookie());
        assert_eq!(same.get("/").await.status, 401, "{broken}");
        served.browser().await;
        directory = served.stop().await;
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let served = Served::start_in(directory);
    served.browser().await;
}

#[tokio::test]
async fn of_several_cookies_the_right_one_counts() {
    let served = Served::start();
    let browser = served.browser().await;
    let name = served.page.shared.sessions.cookie_name();
    let both = browser.with_cookie(&format!("{name}=planted; {}", browser.cookie()));
    assert_eq!(both.get("/").await.status, 200);
}
