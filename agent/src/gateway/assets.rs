//! Owns the files of the page, which are part of the binary: the project's own, and noVNC's.
//!
//! Promises: a file's address holds the digest of all files, so that it may be cached for ever and a page
//! never mixes two releases. Must not read the disk.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

/// One embedded file.
struct Asset {
    /// `page/terminal.js`, `novnc/core/rfb.js`.
    path: &'static str,
    mime: &'static str,
    bytes: &'static [u8],
}

// ASSETS (sorted by path), VERSION, TERMINAL_HTML, MISSING_HTML; written by build.rs.
include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// What the page's links start with.
pub(super) fn prefix() -> String {
    format!("/assets/{VERSION}")
}

/// Template of a terminal's page.
pub(super) fn terminal_html() -> &'static str {
    TERMINAL_HTML
}

/// Template of the page for a terminal that does not exist.
pub(super) fn missing_html() -> &'static str {
    MISSING_HTML
}

/// The digest of all files.
pub(super) fn version() -> &'static str {
    VERSION
}

/// `GET /assets/{version}/{path}`.
pub(super) async fn serve(Path((version, path)): Path<(String, String)>, headers: HeaderMap) -> Response {
    let found = ASSETS.binary_search_by(|asset| asset.path.cmp(path.as_str()));
    let (true, Ok(at)) = (version == VERSION, found) else {
        return (StatusCode::NOT_FOUND, "no such asset in this release\n").into_response();
    };
    let asset = &ASSETS[at];
    let etag = format!("\"{VERSION}\"");
    let lasting = [
        (CACHE_CONTROL, "public, max-age=31536000, immutable".to_owned()),
        (ETAG, etag.clone()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, lasting).into_response();
    }
    (lasting, [(CONTENT_TYPE, asset.mime)], asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_complete_without_a_second_load() {
        // After its gateway died, the page can fetch nothing more: neither a module nor a decoder.
        for asset in ASSETS.iter().filter(|asset| asset.path.ends_with(".js")) {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            assert!(!text.contains("import("), "{} loads a module lazily", asset.path);
        }
    }

    #[test]
    fn all_of_novnc_that_is_needed_is_there_and_nothing_else() {
        let paths: Vec<_> = ASSETS.iter().map(|asset| asset.path).collect();
        for needed in ["novnc/core/rfb.js", "novnc/core/decoders/tight.js", "novnc/vendor/pako/LICENSE"] {
            assert!(paths.contains(&needed), "{needed}");
        }
        for licence in ["novnc/LICENSE.txt", "novnc/docs/LICENSE.MPL-2.0", "novnc/AUTHORS"] {
            assert!(paths.contains(&licence), "{licence}");
        }
        assert!(paths.iter().all(|path| !path.contains("node_modules") && !path.ends_with("package.json")));
        assert!(paths.is_sorted());
    }
}
