//! A small VM under emulation. Its firmware is the guest: it counts in a register and writes the count to 129 pages, so
//! that memory and registers of different instants do not fit together.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// For anything that a busy machine does in a second.
const LIMIT: Duration = Duration::from_mins(1);
pub(crate) const RAM_BYTES: usize = 32 << 20;
const FIRMWARE_BYTES: usize = 64 << 10;
const COUNT_AT: usize = 0x500;
const PAGES_AT: std::ops::Range<usize> = 0x1_0000..0x9_0000;

/// 16-bit code at f000:0000.
const GUEST: [u8; 35] = [
    0x66, 0x31, 0xc0, //                  xor eax, eax
    0x31, 0xdb, //                        xor bx, bx
    0x8e, 0xdb, //                        mov ds, bx
    0x66, 0x40, //                 again: inc eax
    0x66, 0xa3, 0x00, 0x05, //            mov [0x500], eax
    0xbb, 0x00, 0x10, //                  mov bx, 0x1000
    0x8e, 0xc3, //                  page: mov es, bx
    0x26, 0x66, 0xa3, 0x00, 0x00, //      mov es:[0], eax
    0x81, 0xc3, 0x00, 0x01, //            add bx, 0x100
    0x81, 0xfb, 0x00, 0x90, //            cmp bx, 0x9000
    0x75, 0xef, //                        jne page
    0xeb, 0xe4, //                        jmp again
];
/// Where an x86 processor starts, from the end of the firmware, and a jump to f000:0000.
const RESET: (usize, [u8; 5]) = (16, [0xea, 0x00, 0x00, 0x00, 0xf0]);

/// Polls until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a firmware that is the guest, and one that would do nothing; RAM that is to be in the VM from the start.
pub(crate) fn prepare(folder: &Path) {
    let mut firmware = vec![0; FIRMWARE_BYTES];
    firmware[..GUEST.len()].copy_from_slice(&GUEST);
    let reset = FIRMWARE_BYTES - RESET.0;
    firmware[reset..reset + RESET.1.len()].copy_from_slice(&RESET.1);
    std::fs::write(folder.join("guest"), firmware).expect("the disk takes a file");
    std::fs::write(folder.join("empty"), vec![0xf4; FIRMWARE_BYTES]).expect("the disk takes a file");
    let page = |number: u32| if number.is_multiple_of(3) { 0 } else { number };
    let pattern: Vec<u8> = (0..2000u32).flat_map(|number| page(number).to_le_bytes().repeat(1024)).collect();
    std::fs::write(folder.join("pattern"), pattern).expect("the disk takes a file");
}

pub(crate) struct Machine {
    qemu: Child,
    folder: PathBuf,
    name: &'static str,
    monitor: Option<(BufReader<UnixStream>, UnixStream)>,
}

impl Machine {
    /// A VM that counts, with a pattern in its RAM.
    pub(crate) fn counting(folder: &Path, more: &[&str]) -> Self {
        let loader = format!("loader,file={}/pattern,addr=0x200000,force-raw=on", folder.display());
        let bios = folder.join("guest").display().to_string();
        Self::start(folder, "source", &[more, &["-nodefaults", "-bios", &bios, "-device", &loader]].concat())
    }

    pub(crate) fn start(folder: &Path, name: &'static str, more: &[&str]) -> Self {
        let socket = folder.join(format!("{name}.monitor"));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,tb-size=32", "-m", "32", "-no-user-config", "-display", "none"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu starts");
        let mut machine = Self { qemu, folder: folder.to_owned(), name, monitor: None };
        let stream = eventually("the monitor", || UnixStream::connect(&socket).ok());
        let writer = stream.try_clone().expect("a socket can be cloned");
        machine.monitor = Some((BufReader::new(stream), writer));
        machine.qmp("qmp_capabilities", json!({}));
        machine
    }

    /// A VM that takes a stream and stays paused.
    pub(crate) fn incoming(folder: &Path, stream: &Path, more: &[&str]) -> Self {
        let from = format!("exec:cat {}", stream.display());
        let mut machine = Self::start(folder, "destination", &[more, &["-S", "-incoming", &from]].concat());
        eventually("the stream is loaded", || (machine.status() != "inmigrate").then_some(()));
        machine
    }

    /// Asks the monitor; an error is one, too.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let question = json!({ "execute": command, "arguments": arguments });
        let (reader, writer) = self.monitor.as_mut().expect("it is connected");
        let mut line = String::new();
        let mut asked = writeln!(writer, "{question}");
        loop {
            line.clear();
            if asked.and_then(|()| reader.read_line(&mut line)).unwrap_or(0) == 0 {
                panic!("{}: at {question} qemu ended with {:?}", self.name, self.qemu.wait());
            }
            let mut answer: Value = serde_json::from_str(&line).expect("the monitor speaks JSON");
            if let Some(error) = answer.get_mut("error") {
                return Err(error.take());
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            asked = Ok(());
        }
    }

    pub(crate) fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        self.ask(command, arguments).unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name))
    }

    pub(crate) fn status(&mut self) -> String {
        self.qmp("query-status", json!({}))["status"].as_str().unwrap_or_default().to_owned()
    }

    /// `10.0.2`.
    pub(crate) fn version(&mut self) -> String {
        let version = &self.qmp("query-version", json!({}))["qemu"];
        format!("{}.{}.{}", version["major"], version["minor"], version["micro"])
    }

    pub(crate) fn capability(&mut self, name: &str, state: bool) -> Result<Value, Value> {
        let capability = json!({ "capability": name, "state": state });
        self.ask("migrate-set-capabilities", json!({ "capabilities": [capability] }))
    }

    /// Whether this release has a capability of migration.
    pub(crate) fn knows(&mut self, capability: &str) -> bool {
        let known = self.qmp("query-migrate-capabilities", json!({}));
        known.as_array().expect("a list").iter().any(|known| known["capability"] == capability)
    }

    /// Migrates to a file through a pipe. QEMU is done before who reads the pipe is.
    pub(crate) fn save(&mut self, stream: &Path) {
        let (part, whole) = (stream.with_extension("part"), stream.display());
        drop(std::fs::remove_file(stream));
        self.migrate(&format!("exec:cat > {0} && mv {0} {whole}", part.display()));
        eventually("the stream is written", || stream.exists().then_some(()));
    }

    pub(crate) fn migrate(&mut self, uri: &str) {
        self.qmp("migrate", json!({ "uri": uri }));
        eventually("the migration is done", || {
            let state = self.qmp("query-migrate", json!({}));
            assert_ne!(state["status"], "failed", "{state}");
            (state["status"] == "completed").then_some(())
        });
    }

    fn memory(&mut self, at: u64, bytes: usize) -> Vec<u8> {
        let file = self.folder.join("memory");
        self.qmp("pmemsave", json!({ "val": at, "size": bytes, "filename": file }));
        std::fs::read(file).expect("qemu has written it")
    }

    /// RAM, then the firmware as the processor sees it below 4 GiB.
    pub(crate) fn all_memory(&mut self) -> Vec<u8> {
        let mut memory = self.memory(0, RAM_BYTES);
        memory.extend(self.memory((1 << 32) - FIRMWARE_BYTES as u64, FIRMWARE_BYTES));
        memory
    }

    /// The guest's count in memory.
    pub(crate) fn count(&mut self) -> u32 {
        number(&self.memory(COUNT_AT as u64, 4), 0)
    }

    pub(crate) fn await_count_above(&mut self, count: u32) {
        eventually("the guest counts", || (self.count() > count).then_some(()));
    }

    /// The count of a guest that is paused, after a look whether registers and memory are of one instant.
    pub(crate) fn consistent_count(&mut self) -> u32 {
        let text = self.qmp("human-monitor-command", json!({ "command-line": "info registers" }));
        let text = text.as_str().expect("text");
        let (_, register) = text.split_once("AX=").expect("the register is shown");
        let hex: String = register.chars().take_while(char::is_ascii_hexdigit).collect();
        let register = u32::try_from(u64::from_str_radix(&hex, 16).expect("a number")).expect("32 bits");
        let memory = self.memory(0, PAGES_AT.end);
        let counts = [COUNT_AT].into_iter().chain(PAGES_AT.step_by(4096));
        let counts: Vec<u32> = counts.map(|at| number(&memory, at)).collect();
        let written = counts.iter().take_while(|count| **count == register).count();
        assert!(
            counts[written..].iter().all(|count| *count == register - 1),
            "the register has {register}, memory {counts:?}"
        );
        register
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.qemu.kill());
        drop(self.qemu.wait());
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
