//! Owns the question whether the guests of a lab may run on the machine's processor.
//!
//! Promises: no wherever an agent would fall back at once. Must not do: try a guest; agents do, and have the last word. It
//! repeats what the hypervisor's crate asks of the processor, because that one needs libvirt to be linked, which the
//! programs that raise a lab install first.

use std::fs::OpenOptions;

/// Whether every processor has vmx or svm, where there is such a flag, and /dev/kvm opens.
pub(crate) fn may_work() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    opens && virtualises(std::env::consts::ARCH, &cpuinfo)
}

fn virtualises(architecture: &str, cpuinfo: &str) -> bool {
    if !matches!(architecture, "x86_64" | "x86") {
        return true;
    }
    let is_flags = |line: &&str| line.split(':').next().is_some_and(|key| key.trim() == "flags");
    let able = |line: &str| line.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let mut flags = cpuinfo.lines().filter(is_flags).peekable();
    flags.peek().is_some() && flags.all(able)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_has_to_have_the_flag_where_there_is_one() {
        let able =
            "processor\t: 0\nflags\t\t: fpu svm\nvmx flags\t: x\n\nprocessor\t: 1\nflags\t\t: vmx fpu\n";
        assert!(virtualises("x86_64", able));
        for lacking in ["", "processor\t: 0\nflags\t\t: fpu\nvmx flags\t: vmx\n", &able.replace("svm", "sse")]
        {
            assert!(!virtualises("x86_64", lacking), "{lacking}");
        }
        assert!(virtualises("aarch64", "processor\t: 0\nFeatures\t: fp asimd\n"));
    }
}
