//! A peer that says what it should not, or nothing.

use std::time::Instant;

use axum::routing::post;

use understudy_core::bounds::ASK;
use understudy_core::model::records::Kept;

use super::super::copies::BYTES_MAX;
use super::*;

/// A peer that answers in this way.
async fn answers<F: Future<Output = (StatusCode, String)> + Send>(
    answer: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Result<Vec<Kept>, AskError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new().route("/v1/copies", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let peer = Peer { host: &host("host2"), address: &address, security: &Security::Loopback };
    ask_copies(peer, &asked(), ASK).await
}

fn asked() -> [Asked; 1] {
    [Asked { node: "alice/exec-1".parse().unwrap(), closing: None }]
}

#[tokio::test]
async fn an_answer_is_taken_as_long_as_one_may_be_and_in_the_form_that_it_has() {
    let kept = vec![Kept { arriving: true, ..Kept::default() }];
    let whole = serde_json::to_string(&kept).unwrap();
    let said = {
        let whole = whole.clone();
        answers(move || std::future::ready((StatusCode::OK, whole.clone()))).await
    };
    assert_eq!(said.unwrap(), kept);
    let long = whole + &" ".repeat(BYTES_MAX);
    let said = answers(move || std::future::ready((StatusCode::OK, long.clone()))).await;
    assert!(matches!(said, Err(AskError::Answer(_))), "{said:?}");
    let said = answers(|| std::future::ready((StatusCode::OK, "{}".to_owned()))).await;
    assert!(matches!(said, Err(AskError::Unreadable(_))), "{said:?}");
    let said = answers(|| std::future::ready((StatusCode::OK, "[]".to_owned()))).await;
    assert!(matches!(said, Err(AskError::Count { asked: 1, said: 0 })), "{said:?}");
    let said = answers(|| std::future::ready((StatusCode::SERVICE_UNAVAILABLE, "not yet".to_owned()))).await;
    assert!(matches!(&said, Err(AskError::Refused { said, .. }) if said == "not yet"), "{said:?}");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up_in_time() {
    let begun = Instant::now();
    let said = answers(std::future::pending).await;
    assert!(matches!(&said, Err(AskError::Late { host: peer, .. }) if *peer == host("host2")), "{said:?}");
    assert!(begun.elapsed() >= ASK && begun.elapsed() < 3 * ASK, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn where_nothing_listens_nobody_waits() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let peer = Peer { host: &host("host2"), address: &closed, security: &Security::Loopback };
    let said = ask_copies(peer, &asked(), ASK).await;
    assert!(matches!(said, Err(AskError::Reach(ReachError::Connect { .. }))), "{said:?}");
}
