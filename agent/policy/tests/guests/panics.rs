//! A policy in Rust that panics: what it says then reaches the operator.

use crate::common::question;
use crate::one::One;
use crate::template::skeleton;
use crate::{policies, root, toolchain};

const POLICY: &str = r#"
use understudy_policy_sdk::placement::{Answer, Question};

understudy_policy_sdk::placement!(place);

fn place(question: &Question<'_>) -> Answer {
    assert_ne!(question.request.terminal, "villain", "there is no room for {}", question.request.terminal);
    Ok(question.best(|host| host.suits().then_some(())))
}
"#;

#[test]
#[ignore = "needs the wasm target"]
fn the_text_of_a_panic_is_the_reason_that_the_operator_reads() {
    let toolchain = toolchain();
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in skeleton::files("panics").unwrap() {
        let text = if path == "src/lib.rs" { POLICY.to_owned() } else { text };
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::copy(root().join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    let component = policies::build_crate(&root(), folder.path(), "policy-panics", &toolchain).unwrap();
    let policy = One::load("panics", &std::fs::read(component).unwrap(), &[]).unwrap();
    assert_eq!(policy.rows(&question("alice")), Ok(vec![0, 1, 2]));
    let said = policy.place(&question("villain")).unwrap_err();
    assert!(said.contains("policy panics broke off: "), "{said}");
    assert!(said.contains("there is no room for villain") && said.contains("src/lib.rs"), "{said}");
    assert_eq!(policy.rows(&question("alice")), Ok(vec![0, 1, 2]), "the next question is answered");
}
