//! Owns the reading of libvirt's bulk statistics.
//!
//! Promises: one call for all domains, which does not wait for one that is busy or stopped. Must not do: turn a
//! missing figure into 0.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::model::units::Vcpus;
use virt_sys as sys;

use super::Libvirt;
use crate::error::ListError;
use crate::ffi::{self, StatsRecord, Value};
use crate::numbers;
use crate::types::{BlockStats, InstanceStats, InterfaceStats};

const GROUPS: u32 = sys::VIR_DOMAIN_STATS_STATE
    | sys::VIR_DOMAIN_STATS_CPU_TOTAL
    | sys::VIR_DOMAIN_STATS_BALLOON
    | sys::VIR_DOMAIN_STATS_VCPU
    | sys::VIR_DOMAIN_STATS_INTERFACE
    | sys::VIR_DOMAIN_STATS_BLOCK;

impl Libvirt {
    pub(super) fn count(&self) -> Result<Vec<InstanceStats>, ListError> {
        let flags = sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
        let records = self.link.call("stats", self.deadlines.query, move |connect| {
            ffi::all_stats(connect, GROUPS, flags).or_else(|error| {
                // A simulated libvirt has the state and nothing else.
                let poor = crate::refusal::refusal(&error).kind == crate::RefusalKind::Unsupported;
                if poor { ffi::all_stats(connect, sys::VIR_DOMAIN_STATS_STATE, 0) } else { Err(error) }
            })
        });
        Ok(records.map_err(ListError::List)?.iter().map(stats).collect())
    }
}

struct Values<'a>(BTreeMap<&'a str, &'a Value>);

impl Values<'_> {
    fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            Value::Text(_) | Value::Unused => None,
        }
    }

    fn count(&self, name: &str) -> u64 {
        self.number(name).unwrap_or(0)
    }

    fn text(&self, name: &str) -> String {
        match self.0.get(name) {
            Some(Value::Text(text)) => text.clone(),
            Some(Value::Unsigned(_) | Value::Signed(_) | Value::Unused) | None => String::new(),
        }
    }
}

fn stats(record: &StatsRecord) -> InstanceStats {
    let values = Values(record.values.iter().map(|(name, value)| (name.as_str(), value)).collect());
    let small = |name: &str| values.number(name).and_then(|number| u32::try_from(number).ok());
    let reason = small("state.reason").and_then(|reason| i32::try_from(reason).ok()).unwrap_or(0);
    InstanceStats {
        id: record.id,
        name: record.name.clone(),
        state: numbers::state(small("state.state").unwrap_or(u32::MAX), reason),
        cpu_time: values.number("cpu.time").map(Duration::from_nanos),
        memory_current_kib: values.number("balloon.current"),
        memory_maximum_kib: values.number("balloon.maximum"),
        memory_rss_kib: values.number("balloon.rss"),
        vcpus: small("vcpu.current").map(Vcpus),
        interfaces: (0..values.count("net.count")).map(|index| interface(&values, index)).collect(),
        blocks: (0..values.count("block.count")).map(|index| block(&values, index)).collect(),
    }
}

fn interface(values: &Values<'_>, index: u64) -> InterfaceStats {
    let count = |name: &str| values.count(&format!("net.{index}.{name}"));
    InterfaceStats {
        name: values.text(&format!("net.{index}.name")),
        rx_bytes: count("rx.bytes"),
        rx_packets: count("rx.pkts"),
        rx_errors: count("rx.errs"),
        rx_drops: count("rx.drop"),
        tx_bytes: count("tx.bytes"),
        tx_packets: count("tx.pkts"),
        tx_errors: count("tx.errs"),
        tx_drops: count("tx.drop"),
    }
}

fn block(values: &Values<'_>, index: u64) -> BlockStats {
    let count = |name: &str| values.count(&format!("block.{index}.{name}"));
    BlockStats {
        name: values.text(&format!("block.{index}.name")),
        read_bytes: count("rd.bytes"),
        read_requests: count("rd.reqs"),
        write_bytes: count("wr.bytes"),
        write_requests: count("wr.reqs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::InstanceState;

    #[test]
    fn a_record_is_read_and_what_it_lacks_is_not_made_up() {
        let number = |name: &str, value| (name.to_owned(), Value::Unsigned(value));
        let record = StatsRecord {
            id: "11111111-2222-4333-8444-000000000001".parse().unwrap(),
            name: "u1".to_owned(),
            values: vec![
                ("state.state".to_owned(), Value::Signed(1)),
                number("cpu.time", 2_000_000_000),
                number("net.count", 1),
                ("net.0.name".to_owned(), Value::Text("vnet0".to_owned())),
                number("net.0.rx.bytes", 7),
                number("block.count", 1),
                number("block.0.wr.reqs", 9),
            ],
        };
        let stats = stats(&record);
        assert_eq!(stats.state, InstanceState::Running);
        assert_eq!(stats.cpu_time, Some(Duration::from_secs(2)));
        assert_eq!(stats.memory_current_kib, None);
        assert_eq!((stats.interfaces[0].name.as_str(), stats.interfaces[0].rx_bytes), ("vnet0", 7));
        assert_eq!(stats.blocks[0].write_requests, 9);
    }
}
