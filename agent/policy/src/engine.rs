//! Owns the sandbox: how code is compiled, what one question may use, and what it is called when that is too much.
//!
//! Promises: nothing of a question outlives it, and its result depends on the component and the question alone.

use std::sync::Arc;

use understudy_core::model::units::MiB;
use wasmtime::component::{HasSelf, Instance, InstancePre, Linker};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolConcurrencyLimitError, PoolingAllocationConfig,
    ResourceLimiter,
};
use wasmtime::{Store, Trap};

use crate::bindings::{v01, v02};
use crate::fault::{EngineFault, PolicyFault};
use crate::limits::Limits;
use crate::log::{Level, PolicyLog};
use crate::slots::Slots;
use crate::text::one_line;
use crate::ticker::Ticker;

/// A quarter of what the smallest thread of the daemon has, so that a guest's recursion ends before the host's
/// stack does.
const STACK_BYTES: usize = 512 << 10;
/// A Python component has some 30 core instances, a few tables each.
const INSTANCES_MAX: usize = 128;
/// Core instances, memories and tables of an ordinary component, with room.
const PARTS_MAX: u32 = 64;
/// Questions at a time: the leader's own, and one for each admission that is being asked for. More wait for their turn.
const QUESTIONS_MAX: u32 = 32;
/// Memory that stays from one question to the next: what a Rust policy takes for 10 000 hosts.
const KEPT_BYTES: usize = 4 << 20;
/// What the host keeps for one element of a table, rounded up.
const TABLE_ELEMENT_BYTES: usize = 16;
/// Text of a guest that a fault carries.
pub(crate) const MESSAGE_BYTES_MAX: usize = 512;
/// How the engine reports that hostcall fuel is used up: it has no type of its own for that. The test with an
/// answer too large would see a change of this text.
const FUEL_TEXT: &str = "fuel allocated for hostcalls has been exhausted";

/// What ends a question that takes too long.
enum Meter {
    /// Time: of all, it disturbs the guest's code least. A question waits for one of the slots first.
    Clock(Ticker, Slots),
    /// A count of instructions: the same everywhere, however busy the machine.
    Fuel(u64),
}

/// The engine of one process.
pub(crate) struct Sandbox {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<Guest>,
    meter: Meter,
}

/// Who is asked, and what it may use.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) limits: Limits,
    pub(crate) log: Arc<PolicyLog>,
}

impl Subject {
    pub(crate) fn new(name: &str, limits: Limits) -> Self {
        Self { name: name.to_owned(), limits, log: Arc::new(PolicyLog::new(name.into())) }
    }
}

/// What one question took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of memories and tables.
    pub(crate) memory: usize,
    /// Instructions, where they are counted.
    pub(crate) fuel: u64,
}

/// What the host keeps for one question.
pub(crate) struct Guest {
    log: Arc<PolicyLog>,
    budget: Budget,
    /// The last line that the policy logged as an error: the reason that it gives for a trap.
    said: Option<String>,
}

impl Guest {
    fn write(&mut self, level: Level, message: &str) {
        if level == Level::Error {
            self.said = Some(one_line(message, MESSAGE_BYTES_MAX));
        }
        self.log.write(level, message);
    }
}

/// The imports of each version are the same one function.
macro_rules! imports {
    ($version:ident) => {
        impl $version::understudy::policy::types::Host for Guest {}

        impl $version::understudy::policy::log::Host for Guest {
            fn write(&mut self, level: $version::understudy::policy::log::Level, message: String) {
                use $version::understudy::policy::log::Level as Its;
                let level = match level {
                    Its::Error => Level::Error,
                    Its::Warn => Level::Warn,
                    Its::Info => Level::Info,
                    Its::Debug => Level::Debug,
                    Its::Trace => Level::Trace,
                };
                Guest::write(self, level, &message);
            }
        }
    };
}

imports!(v01);
imports!(v02);

/// Why a guest gave no answer, in its own words.
pub(crate) enum Refusal {
    /// This question cannot be answered.
    Question(String),
    /// No question can be, with these parameters.
    Parameters(String),
}

/// Bytes that are left for the memories and tables of one question.
struct Budget {
    left: usize,
    exceeded: bool,
}

impl Budget {
    fn take(&mut self, bytes: Option<usize>) -> wasmtime::Result<bool> {
        match bytes.and_then(|b| self.left.checked_sub(b)) {
            Some(left) => {
                self.left = left;
                Ok(true)
            }
            None => {
                self.exceeded = true;
                // Not `Ok(false)`: guests turn that into a trap of their own that says nothing of memory.
                Err(wasmtime::Error::msg("memory limit reached"))
            }
        }
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(&mut self, from: usize, to: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        self.take(Some(to.saturating_sub(from)))
    }

    fn table_growing(&mut self, from: usize, to: usize, _max: Option<usize>) -> wasmtime::Result<bool> {
        self.take(to.saturating_sub(from).checked_mul(TABLE_ELEMENT_BYTES))
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        INSTANCES_MAX
    }
}

impl Sandbox {
    /// Ends questions by the clock.
    pub(crate) fn clocked() -> Result<Self, EngineFault> {
        let mut config = config();
        config.epoch_interruption(true);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
        let (engine, linker) = set_up(&config).or_else(|fault| {
            // A machine may forbid that much of the address space. What was compiled fits both.
            tracing::warn!(%fault, "policies run without a pool of memory: each question takes longer");
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            set_up(&config)
        })?;
        let ticker = Ticker::start(&engine).map_err(|e| EngineFault { message: e.to_string() })?;
        Ok(Self { engine, linker, meter: Meter::Clock(ticker, Slots::new(QUESTIONS_MAX)) })
    }

    /// Ends questions after `fuel` instructions, whatever the time.
    pub(crate) fn fueled(fuel: u64) -> Result<Self, EngineFault> {
        let mut config = config();
        config.consume_fuel(true);
        let (engine, linker) = set_up(&config)?;
        Ok(Self { engine, linker, meter: Meter::Fuel(fuel) })
    }

    /// Put one question to a fresh instance: `call` makes the one call of an export.
    pub(crate) fn ask<R>(
        &self,
        subject: &Subject,
        pre: &InstancePre<Guest>,
        call: impl FnOnce(&mut Store<Guest>, &Instance) -> wasmtime::Result<Result<R, Refusal>>,
    ) -> (Result<R, PolicyFault>, Usage) {
        let Subject { name, limits, log } = subject;
        // The wait is no part of the policy's own time, or a busy host would be charged to it.
        let _slot = match &self.meter {
            Meter::Clock(_, slots) => match slots.take(limits.deadline) {
                Some(slot) => Some(slot),
                None => return (Err(PolicyFault::Busy { policy: name.clone() }), Usage::default()),
            },
            Meter::Fuel(_) => None,
        };
        let budget = Budget { left: bytes(limits.memory), exceeded: false };
        let mut store = Store::new(&self.engine, Guest { log: Arc::clone(log), budget, said: None });
        store.limiter(|guest| &mut guest.budget);
        store.set_hostcall_fuel(bytes(limits.answer_size));
        let outcome = match &self.meter {
            Meter::Clock(ticker, _) => {
                let _ticking = ticker.question();
                store.set_epoch_deadline(Ticker::ticks(limits.deadline));
                pre.instantiate(&mut store).and_then(|instance| call(&mut store, &instance))
            }
            Meter::Fuel(fuel) => store
                .set_fuel(*fuel)
                .and_then(|()| pre.instantiate(&mut store))
                .and_then(|instance| call(&mut store, &instance)),
        };
        let usage = self.usage(&store, limits);
        let outcome = match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Refusal::Question(message))) => Err(PolicyFault::Guest {
                policy: name.clone(),
                message: one_line(&message, MESSAGE_BYTES_MAX),
            }),
            Ok(Err(Refusal::Parameters(message))) => Err(PolicyFault::Parameters {
                policy: name.clone(),
                message: one_line(&message, MESSAGE_BYTES_MAX),
            }),
            Err(error) => {
                tracing::debug!(policy = name, ?error, "policy broke off");
                Err(self.fault(subject, store.into_data(), &error))
            }
        };
        (outcome, usage)
    }

    fn usage(&self, store: &Store<Guest>, limits: &Limits) -> Usage {
        let fuel = match &self.meter {
            Meter::Clock(..) => 0,
            Meter::Fuel(fuel) => fuel.saturating_sub(store.get_fuel().unwrap_or(0)),
        };
        Usage { memory: bytes(limits.memory).saturating_sub(store.data().budget.left), fuel }
    }

    fn fault(&self, subject: &Subject, guest: Guest, error: &wasmtime::Error) -> PolicyFault {
        let Limits { deadline, memory, answer_size, .. } = subject.limits;
        let policy = subject.name.clone();
        if guest.budget.exceeded {
            return PolicyFault::Memory { policy, limit: memory };
        }
        if error.is::<PoolConcurrencyLimitError>() {
            // Some components need more of the pool than an ordinary one.
            return PolicyFault::Busy { policy };
        }
        let trap = error.downcast_ref::<Trap>().copied();
        match (&self.meter, trap) {
            (Meter::Clock(..), Some(Trap::Interrupt)) => {
                return PolicyFault::Deadline { policy, limit: deadline };
            }
            (Meter::Fuel(limit), Some(Trap::OutOfFuel)) => {
                return PolicyFault::Fuel { policy, limit: *limit };
            }
            (Meter::Clock(..) | Meter::Fuel(_), _) => {}
        }
        let what = trap.map_or_else(|| error.root_cause().to_string(), |t| t.to_string());
        if trap.is_none() && what.contains(FUEL_TEXT) {
            return PolicyFault::TooLarge { policy, limit: answer_size };
        }
        let message = match guest.said {
            Some(said) => format!("{said} ({what})"),
            None => what,
        };
        PolicyFault::Trap { policy, message: one_line(&message, MESSAGE_BYTES_MAX) }
    }
}

/// What makes a question's result depend on the component and the question alone. Threads and the async extensions
/// are left out at build time, see the features in Cargo.toml.
fn config() -> Config {
    let mut config = Config::new();
    config
        .max_wasm_stack(STACK_BYTES)
        .cranelift_nan_canonicalization(true)
        .wasm_relaxed_simd(false)
        .relaxed_simd_deterministic(true);
    config
}

/// Memory that stays mapped from one question to the next. Of a fresh mapping every page is a fault, which costs a
/// question about a thousand hosts more than its answer does; here what was used is zeroed instead.
fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(QUESTIONS_MAX)
        .total_core_instances(QUESTIONS_MAX * PARTS_MAX)
        .total_memories(QUESTIONS_MAX * 2)
        .total_tables(QUESTIONS_MAX * PARTS_MAX)
        .max_core_instances_per_component(PARTS_MAX * 2)
        .max_memories_per_component(PARTS_MAX)
        .max_tables_per_component(PARTS_MAX * 2)
        .max_tables_per_module(PARTS_MAX)
        .max_core_instance_size(16 << 20)
        .max_component_instance_size(16 << 20)
        .max_memory_size(1 << 30)
        .table_elements(1 << 20)
        .linear_memory_keep_resident(KEPT_BYTES)
        .table_keep_resident(64 << 10)
        .max_unused_warm_slots(4)
        .pagemap_scan(Enabled::Auto);
    pool
}

fn set_up(config: &Config) -> Result<(Engine, Linker<Guest>), EngineFault> {
    let fault = |error: wasmtime::Error| EngineFault { message: format!("{error:#}") };
    let engine = Engine::new(config).map_err(fault)?;
    let mut linker = Linker::new(&engine);
    v01::Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest).map_err(fault)?;
    v02::Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest: &mut Guest| guest).map_err(fault)?;
    Ok((engine, linker))
}

fn bytes(size: MiB) -> usize {
    usize::try_from(size.bytes()).unwrap_or(usize::MAX)
}
