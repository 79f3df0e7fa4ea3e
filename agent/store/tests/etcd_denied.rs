//! What the etcd store says when it is not let in: each error names the file or user that is at fault.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;

use std::path::{Path, PathBuf};

use cluster::Cluster;
use cluster::certificates::Certificates;
use etcd_client::{Permission, PermissionType};
use understudy_store::{
    Committed, Credentials, Etcd, EtcdConfig, IdentityFiles, Revision, Store, StoreError, TlsFiles, Txn,
    WatchError, chain,
};

async fn put(store: &Etcd, value: impl Into<Vec<u8>>) {
    let committed = store.commit(&Txn::new().put("x", value)).await.unwrap();
    assert!(matches!(committed, Committed::Applied { .. }), "{committed:?}");
}

fn denied(error: StoreError, words: &str, expected: Option<&Path>) {
    let text = chain(&error);
    let StoreError::Denied { file, .. } = error else { panic!("{text}") };
    assert!(text.contains(words), "{words:?} in {text:?}");
    assert_eq!(file.as_deref(), expected, "{text}");
    if let Some(path) = expected {
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}

fn files(authority: PathBuf, certificate: PathBuf, key: PathBuf) -> TlsFiles {
    TlsFiles { authority, identity: Some(IdentityFiles { certificate, key }) }
}

async fn opened(tls: TlsFiles) -> Result<Etcd, StoreError> {
    let config = EtcdConfig::new(vec!["https://127.0.0.1:1".into()], "/understudy/v1/", "alpha");
    Etcd::open(EtcdConfig { tls: Some(tls), ..config }).await
}

#[tokio::test]
async fn a_certificate_file_that_cannot_be_used_is_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let made = Certificates::make(folder.path());
    let (ca, pem, key) = (made.file("ca.pem"), made.file("client.pem"), made.file("client.key"));
    let (other_key, missing, empty, junk) =
        (made.file("server.key"), made.file("missing.pem"), made.file("empty.pem"), made.file("junk.pem"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&junk, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let of = |a: &PathBuf, b: &PathBuf, c: &PathBuf| files(a.clone(), b.clone(), c.clone());
    assert!(opened(of(&ca, &pem, &key)).await.is_ok());
    let table = [
        (of(&missing, &pem, &key), "cannot read", &missing),
        (of(&ca, &missing, &key), "cannot read", &missing),
        (of(&ca, &pem, &missing), "cannot read", &missing),
        (of(&empty, &pem, &key), "does not hold a certificate", &empty),
        (of(&junk, &pem, &key), "does not hold a certificate", &junk),
        (of(&ca, &key, &key), "does not hold a certificate", &key),
        (of(&ca, &pem, &pem), "does not hold a private key", &pem),
        (of(&ca, &pem, &other_key), "does not fit the certificate", &other_key),
    ];
    for (tls, words, path) in table {
        denied(opened(tls).await.err().expect("it cannot be used"), words, Some(path));
    }
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_handshake_that_fails_names_the_file_that_is_at_fault() {
    let cluster = Cluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = Certificates::make(folder.path());
    let own = &cluster.certificates;
    let stranger_ca = files(stranger.file("ca.pem"), own.file("client.pem"), own.file("client.key"));
    let stranger_client = files(own.file("ca.pem"), stranger.file("client.pem"), stranger.file("client.key"));
    let no_client = TlsFiles { authority: own.file("ca.pem"), identity: None };
    let table = [
        (stranger_ca, "was not accepted by the authority", Some(stranger.file("ca.pem"))),
        (stranger_client, "did not accept the client certificate", Some(stranger.file("client.pem"))),
        (no_client, "none is configured", None),
    ];
    for (tls, words, path) in table {
        let store = Etcd::open(EtcdConfig { tls: Some(tls), ..cluster.config("alpha") }).await.unwrap();
        denied(store.get("x").await.unwrap_err(), words, path.as_deref());
        denied(store.commit(&Txn::new().put("x", "1")).await.unwrap_err(), words, path.as_deref());
        let mut watch = store.watch("", Revision(0)).await.unwrap();
        match watch.next().await {
            Err(WatchError::Store(error)) => denied(error, words, path.as_deref()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_member_with_a_bad_certificate_is_passed_by() {
    let (cluster, stranger) = (Cluster::start(1).await, Cluster::start(1).await);
    let mut config = cluster.config("alpha");
    config.endpoints.insert(0, stranger.endpoint(0));
    let store = Etcd::open(config).await.unwrap();
    put(&store, "1").await;
    assert_eq!(store.get("x").await.unwrap().unwrap().value, b"1");
    assert_eq!(stranger.store("beta").await.get("x").await.unwrap(), None);
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn renewed_certificates_are_used_without_a_restart() {
    let mut cluster = Cluster::start(1).await;
    let store = cluster.store("alpha").await;
    put(&store, "1").await;
    // The whole authority changes, under the same file names, and the member with it.
    let before = std::fs::read(cluster.certificates.file("ca.pem")).unwrap();
    let folder = cluster.certificates.file("");
    Certificates::make(&folder);
    assert_ne!(before, std::fs::read(cluster.certificates.file("ca.pem")).unwrap());
    cluster.kill(0);
    cluster.restart(0);
    let started = std::time::Instant::now();
    let entry = loop {
        match store.get("x").await {
            Ok(entry) => break entry,
            Err(StoreError::Unavailable { .. }) if started.elapsed() < cluster::LIMIT => {}
            Err(error) => panic!("{}", chain(&error)),
        }
    };
    assert_eq!(entry.unwrap().value, b"1");
}

#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn a_user_is_let_in_by_password_and_only_where_its_role_allows() {
    // Tokens end after 1 s, so that the store must get new ones.
    let cluster = Cluster::start_with(1, &["--auth-token-ttl", "1"]).await;
    let mut admin = cluster.admin(0).await;
    admin.user_add("root", "root-word", None).await.unwrap();
    admin.user_grant_role("root", "root").await.ok();
    admin.role_add("root").await.ok();
    admin.user_grant_role("root", "root").await.ok();
    admin.user_add("agent", "agent-word", None).await.unwrap();
    admin.role_add("agent").await.unwrap();
    let below = Permission::new(PermissionType::Readwrite, cluster::ROOT).with_prefix();
    admin.role_grant_permission("agent", below).await.unwrap();
    admin.user_grant_role("agent", "agent").await.unwrap();
    admin.auth_enable().await.unwrap();

    let config = |name: &str, password: &str, root: &str| EtcdConfig {
        root: root.to_owned(),
        user: (!name.is_empty())
            .then(|| Credentials { name: name.to_owned(), password: password.to_owned() }),
        ..cluster.config("alpha")
    };
    let store = Etcd::open(config("agent", "agent-word", cluster::ROOT)).await.unwrap();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    for n in 0..3 {
        put(&store, n.to_string()).await;
        assert_eq!(watch.next().await.unwrap().changes.len(), 1);
        // The very time that is tested: a token's life.
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    assert_eq!(store.list("").await.unwrap().entries.len(), 1);
    let table = [
        (config("agent", "wrong", cluster::ROOT), "the user 'agent'"),
        (config("nobody", "x", cluster::ROOT), "the user 'nobody'"),
        (config("", "", cluster::ROOT), "no user is configured"),
        (config("agent", "agent-word", "/other/"), "below '/other/'"),
    ];
    for (config, words) in table {
        let store = Etcd::open(config).await.unwrap();
        denied(store.get("x").await.unwrap_err(), words, None);
        denied(store.commit(&Txn::new().put("x", "1")).await.unwrap_err(), words, None);
    }
}
