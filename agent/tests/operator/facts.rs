//! What a host tells the others of itself.

use super::agent;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_reported_where_memory_is_taken_in_and_nothing_where_libvirt_chooses() {
    for (more, reported) in
        [("[libvirt]\nmigration_data_uri = \"tcp://192.0.2.1\"", Some("tcp://192.0.2.1")), ("", None)]
    {
        let (_home, agent) = agent(more).await;
        let seen = agent.snapshots.borrow().clone();
        let facts = seen.view.hosts[&agent.parts.config.host].facts.as_deref().unwrap();
        assert_eq!(facts.migration_data_uri.as_deref(), reported);
        // An agent that does not know the key yet can read the facts of one that does not use it.
        let written = String::from_utf8(understudy::keys::encode(facts)).unwrap();
        assert_eq!(written.contains("migration_data_uri"), reported.is_some(), "{written}");
    }
}
