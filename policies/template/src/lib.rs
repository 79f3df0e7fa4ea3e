//! The policy `my-policy`: of the hosts that would do, the calmest first.

use understudy_policy_sdk::placement::{Answer, Question};

understudy_policy_sdk::placement!(place);

/// Where a member of a node goes: the hosts that would do, best first.
///
/// # Errors
/// A text for the operator where a parameter cannot be read.
pub fn place(question: &Question<'_>) -> Answer {
    let busy = question.parameters(|p| p.number("busy-permille", 800, 0..=1000))?;
    Ok(question.best_because(
        // The lowest key comes first. A host with `None` is left out.
        |host| {
            let is_busy = host.load_permille() >= busy;
            host.suits().then(|| (host.kin(), is_busy, host.taken_permille()))
        },
        |host, _| format!("load {}, {} MiB free", host.load_permille(), host.free_memory_mib()),
    ))
}

#[cfg(test)]
mod tests {
    use understudy_policy_sdk::testing;

    use super::place;

    #[test]
    fn a_busy_host_comes_after_a_calm_one_however_full_that_is() {
        let asked = testing::placement(3).load_permille(0, 900).free_memory_mib(1, 4096);
        assert_eq!(asked.rows(place), Ok(vec![2, 1, 0]));
    }

    #[test]
    fn a_parameter_that_is_no_number_is_refused() {
        let asked = testing::placement(3).parameter("busy-permille", "very");
        assert!(asked.rows(place).is_err());
    }
}
