//! Owns the answer to one question: may a page from this origin use this gateway?
//!
//! Promises: a foreign site cannot open a terminal through its visitor's browser; the page goes on through any
//! gateway of the cluster, which is a foreign origin to the one that it was loaded from. Must not be taken for
//! authentication: what is no browser sends any origin it likes.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};

use understudy_core::model::view::Gateways;

/// Whether a request with `headers` comes from this gateway's own page, from that of another one of the cluster, be its
/// host lost or not, or from no page at all.
pub(super) fn allowed(headers: &HeaderMap, gateways: &Gateways) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let own =
        headers.get(HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()));
    let mut known = gateways.open.iter().chain(&gateways.lost);
    own || known.any(|url| origin_of(url).is_some_and(|known| known.eq_ignore_ascii_case(origin)))
}

/// `scheme://host:port` of a URL, without the scheme's default port, as browsers write origins.
fn origin_of(url: &str) -> Option<&str> {
    let authority_at = url.find("://")? + 3;
    let end = url[authority_at..].find(['/', '?', '#']).map_or(url.len(), |length| authority_at + length);
    let origin = &url[..end];
    let default_port = if origin.starts_with("https:") { ":443" } else { ":80" };
    Some(origin.strip_suffix(default_port).unwrap_or(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_cluster_are_allowed() {
        let gateways = Gateways {
            open: vec!["http://10.0.0.1:8443".to_owned(), "https://host2:443/some/path".to_owned()],
            lost: vec!["http://host3:8443".to_owned()],
        };
        for (origin, host, expected) in [
            (None, "10.0.0.9:8443", true),
            (Some("http://10.0.0.9:8443"), "10.0.0.9:8443", true),
            (Some("http://10.0.0.1:8443"), "10.0.0.9:8443", true),
            (Some("https://host2"), "10.0.0.9:8443", true),
            (Some("https://HOST2"), "10.0.0.9:8443", true),
            (Some("http://host3:8443"), "10.0.0.9:8443", true),
            (Some("http://host2"), "10.0.0.9:8443", false),
            (Some("http://10.0.0.1:8444"), "10.0.0.9:8443", false),
            (Some("http://10.0.0.1:84430"), "10.0.0.9:8443", false),
            (Some("https://evil.example"), "10.0.0.9:8443", false),
            (Some("null"), "10.0.0.9:8443", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(allowed(&headers, &gateways), expected, "{origin:?}");
        }
    }
}
