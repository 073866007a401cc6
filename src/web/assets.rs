//! What the pages load: one style, one script, two icons. All of it is in the binary.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

const ASSETS: [(&str, &str, &str); 4] = [
    ("page.css", "text/css; charset=utf-8", include_str!("assets/page.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("assets/page.js")),
    ("idle.svg", "image/svg+xml", include_str!("assets/idle.svg")),
    ("waiting.svg", "image/svg+xml", include_str!("assets/waiting.svg")),
];

pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(own, ..)| *own == name) {
        Some((_, media, text)) => ([(header::CONTENT_TYPE, *media)], *text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
