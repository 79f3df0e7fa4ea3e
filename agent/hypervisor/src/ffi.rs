//! Owns every unsafe block of this crate: C calls of libvirt and the kernel that have no safe wrapper.
//!
//! Promises: safe functions over borrowed, owned or plain values; no pointer leaves. Must not do: interpret; the
//! numbers are given meaning in `numbers.rs`.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use nix::libc::{self, c_char, c_int, c_void};
use understudy_core::model::ids::InstanceId;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt_sys as sys;

use crate::event::EventKind;
use crate::numbers;

/// Where events go. Called on libvirt's event thread: must not block and must not call libvirt.
pub(crate) type Sink = Arc<dyn Fn(EventKind) + Send + Sync>;

/// What is called when a connection closes; also on libvirt's event thread.
pub(crate) type OnClose = Arc<dyn Fn() + Send + Sync>;

/// One value of a statistics record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Text(String),
    /// A floating-point or boolean one: no figure that is read here has such a value.
    Unused,
}

/// One domain's statistics.
#[derive(Debug, Clone)]
pub(crate) struct StatsRecord {
    pub(crate) id: InstanceId,
    pub(crate) name: String,
    pub(crate) values: Vec<(String, Value)>,
}

fn c_text(text: &str) -> CString {
    // Nothing that is passed here may hold a NUL; what follows one is cut off, as C would do.
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

fn checked(result: c_int) -> Result<c_int, Error> {
    if result < 0 { Err(Error::last_error()) } else { Ok(result) }
}

fn instance(domain: sys::virDomainPtr) -> Option<InstanceId> {
    let mut bytes = [0u8; 16];
    // SAFETY: libvirt hands a valid domain to the callers of this function, and writes VIR_UUID_BUFLEN = 16 bytes.
    let result = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    (result == 0).then(|| InstanceId::from_uuid(Uuid::from_bytes(bytes)))
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives during the call.
unsafe fn owned_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `opaque` was made by `Box::into_raw` of a `Box<Sink>` in [`register_events`] and not freed yet.
unsafe fn deliver(opaque: *mut c_void, event: Option<EventKind>) {
    if let Some(event) = event {
        // SAFETY: promised by the caller; libvirt calls the free function only after the last callback.
        let sink = unsafe { &*opaque.cast::<Sink>() };
        sink(event);
    }
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let event = instance(domain).map(|id| numbers::lifecycle(id, event, detail));
    // SAFETY: registered with this opaque value.
    unsafe { deliver(opaque, event) };
    0
}

unsafe extern "C" fn on_watchdog(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    action: c_int,
    opaque: *mut c_void,
) {
    let event = instance(domain).map(|id| EventKind::Watchdog { id, action: numbers::watchdog(action) });
    // SAFETY: registered with this opaque value.
    unsafe { deliver(opaque, event) };
}

unsafe extern "C" fn on_io_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _path: *const c_char,
    device: *const c_char,
    action: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a string or null.
    let device = unsafe { owned_text(device) };
    let event = instance(domain).map(|id| EventKind::IoError {
        id,
        device,
        paused: numbers::io_error_paused(action),
    });
    // SAFETY: registered with this opaque value.
    unsafe { deliver(opaque, event) };
}

unsafe extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    let event =
        instance(domain).map(|id| EventKind::Agent { id, connected: numbers::agent_connected(state) });
    // SAFETY: registered with this opaque value.
    unsafe { deliver(opaque, event) };
}

unsafe extern "C" fn free_sink(opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register_events`; libvirt frees each once.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register_close` and freed only after the last call.
    let call = unsafe { &*opaque.cast::<OnClose>() };
    call();
}

unsafe extern "C" fn free_on_close(opaque: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register_close`; libvirt frees it once.
    drop(unsafe { Box::from_raw(opaque.cast::<OnClose>()) });
}

/// The type by which libvirt takes every callback, whatever its arguments.
type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// Every event that is of use, with what it calls.
fn wanted_events() -> [(sys::virDomainEventID, Generic); 4] {
    // SAFETY: libvirt's interface takes every callback as the generic type and calls it with the arguments that
    // belong to the event's number (its own macro VIR_DOMAIN_EVENT_CALLBACK does the same cast); number and
    // function are paired right here.
    unsafe {
        [
            (
                sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                std::mem::transmute::<
                    unsafe extern "C" fn(
                        sys::virConnectPtr,
                        sys::virDomainPtr,
                        c_int,
                        c_int,
                        *mut c_void,
                    ) -> c_int,
                    Generic,
                >(on_lifecycle),
            ),
            (
                sys::VIR_DOMAIN_EVENT_ID_WATCHDOG,
                std::mem::transmute::<
                    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, *mut c_void),
                    Generic,
                >(on_watchdog),
            ),
            (
                sys::VIR_DOMAIN_EVENT_ID_IO_ERROR,
                std::mem::transmute::<
                    unsafe extern "C" fn(
                        sys::virConnectPtr,
                        sys::virDomainPtr,
                        *const c_char,
                        *const c_char,
                        c_int,
                        *mut c_void,
                    ),
                    Generic,
                >(on_io_error),
            ),
            (
                sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                std::mem::transmute::<
                    unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void),
                    Generic,
                >(on_agent),
            ),
        ]
    }
}

/// Asks for every event that is of use; the handles by which they are given up again. The lifecycle events are
/// needed, the others are taken where the hypervisor has them.
pub(crate) fn register_events(connect: &Connect, sink: &Sink) -> Result<Vec<c_int>, Error> {
    let mut handles = Vec::new();
    for (number, callback) in wanted_events() {
        let opaque = Box::into_raw(Box::new(Arc::clone(sink)));
        // SAFETY: the connection is valid while borrowed; `opaque` stays valid until libvirt calls `free_sink`.
        let handle = checked(unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                ptr::null_mut(),
                number as c_int,
                Some(callback),
                opaque.cast(),
                Some(free_sink),
            )
        });
        match handle {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                // SAFETY: libvirt did not take it, so it is still ours.
                drop(unsafe { Box::from_raw(opaque) });
                if number == sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE {
                    return Err(error);
                }
                tracing::debug!(number, %error, "this hypervisor has no such event");
            }
        }
    }
    Ok(handles)
}

pub(crate) fn deregister_events(connect: &Connect, handles: &[c_int]) {
    for &handle in handles {
        // SAFETY: the connection is valid while borrowed; the number came from it. A dead connection answers with
        // an error, and then libvirt forgets the callback all the same.
        unsafe { sys::virConnectDomainEventDeregisterAny(connect.as_ptr(), handle) };
    }
}

pub(crate) fn register_close(connect: &Connect, call: OnClose) -> Result<(), Error> {
    let opaque = Box::into_raw(Box::new(call));
    // SAFETY: the connection is valid while borrowed; `opaque` stays valid until libvirt calls `free_on_close`.
    let result = checked(unsafe {
        sys::virConnectRegisterCloseCallback(
            connect.as_ptr(),
            Some(on_close),
            opaque.cast(),
            Some(free_on_close),
        )
    });
    if let Err(error) = result {
        // SAFETY: libvirt did not take it, so it is still ours.
        drop(unsafe { Box::from_raw(opaque) });
        return Err(error);
    }
    Ok(())
}

pub(crate) fn deregister_close(connect: &Connect) {
    // SAFETY: the connection is valid while borrowed; a connection without this callback answers with an error.
    unsafe { sys::virConnectUnregisterCloseCallback(connect.as_ptr(), Some(on_close)) };
}

pub(crate) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the domain is valid while borrowed.
    checked(unsafe { sys::virDomainAbortJob(domain.as_ptr()) }).map(|_| ())
}

/// Whether libvirt has a job under way on the domain; a hypervisor that knows no jobs has none.
pub(crate) fn has_job(domain: &Domain) -> Result<bool, Error> {
    let mut info = std::mem::MaybeUninit::<sys::virDomainJobInfo>::zeroed();
    // SAFETY: the domain is valid while borrowed; libvirt fills the structure, which is plain numbers, so that
    // all zeroes are a value of it too.
    let (result, info) = unsafe {
        let result = checked(sys::virDomainGetJobInfo(domain.as_ptr(), info.as_mut_ptr()));
        (result, info.assume_init())
    };
    match result {
        Err(error) if error.code() == ErrorNumber::NoSupport => return Ok(false),
        other => other?,
    };
    Ok(info.type_ != sys::VIR_DOMAIN_JOB_NONE as c_int)
}

pub(crate) fn all_stats(connect: &Connect, groups: u32, flags: u32) -> Result<Vec<StatsRecord>, Error> {
    let mut records: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
    // SAFETY: the connection is valid while borrowed; libvirt writes a null-terminated array that is freed below.
    let count = checked(unsafe {
        sys::virConnectGetAllDomainStats(connect.as_ptr(), groups, &raw mut records, flags)
    })?;
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: libvirt wrote `count` valid records, each with `nparams` parameters and a domain of its own.
        let record = unsafe {
            let record = &**records.add(index);
            let parameters: &[sys::virTypedParameter] = if record.params.is_null() {
                &[]
            } else {
                std::slice::from_raw_parts(record.params, usize::try_from(record.nparams).unwrap_or(0))
            };
            instance(record.dom).map(|id| StatsRecord {
                id,
                name: owned_text(sys::virDomainGetName(record.dom)),
                values: parameters.iter().map(|parameter| value_of(parameter)).collect(),
            })
        };
        found.extend(record);
    }
    // SAFETY: allocated by the call above, freed once.
    unsafe { sys::virDomainStatsRecordListFree(records) };
    Ok(found)
}

/// # Safety
/// `parameter` was filled by libvirt: its type tells which member of the union is valid.
unsafe fn value_of(parameter: &sys::virTypedParameter) -> (String, Value) {
    // SAFETY: promised by the caller; the field's name is NUL-terminated within its 80 bytes.
    unsafe {
        let name = owned_text(parameter.field.as_ptr());
        let value = match parameter.type_ as sys::virTypedParameterType {
            sys::VIR_TYPED_PARAM_INT => Value::Signed(i64::from(parameter.value.i)),
            sys::VIR_TYPED_PARAM_UINT => Value::Unsigned(u64::from(parameter.value.ui)),
            sys::VIR_TYPED_PARAM_LLONG => Value::Signed(parameter.value.l),
            sys::VIR_TYPED_PARAM_ULLONG => Value::Unsigned(parameter.value.ul),
            sys::VIR_TYPED_PARAM_STRING => Value::Text(owned_text(parameter.value.s)),
            _ => Value::Unused,
        };
        (name, value)
    }
}

/// Sends a command to qemu's monitor, with open files that qemu receives beside it.
pub(crate) fn monitor_with_files(
    domain: &Domain,
    command: &str,
    files: &[BorrowedFd<'_>],
) -> Result<String, Error> {
    let command = c_text(command);
    let mut numbers: Vec<c_int> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let mut answer: *mut c_char = ptr::null_mut();
    // SAFETY: the domain and the files are valid while borrowed; libvirt copies the files; no files are asked
    // back, which null says; the answer is freed below.
    unsafe {
        checked(sys::virDomainQemuMonitorCommandWithFiles(
            domain.as_ptr(),
            command.as_ptr(),
            u32::try_from(numbers.len()).unwrap_or(0),
            numbers.as_mut_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            &raw mut answer,
            0,
        ))?;
        let text = owned_text(answer);
        libc::free(answer.cast());
        Ok(text)
    }
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in; the result is a new descriptor that nobody else owns, or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn pidfd_kill(process: BorrowedFd<'_>) -> io::Result<()> {
    let no_info = ptr::null::<c_void>();
    // SAFETY: the descriptor is valid while borrowed; null asks the kernel to fill in the signal's details.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a virtual machine with one processor on /dev/kvm and lets both go again.
pub(crate) fn kvm_make_processor(device: &File) -> io::Result<()> {
    const KVM_GET_API_VERSION: u64 = 0xAE00;
    const KVM_CREATE_VM: u64 = 0xAE01;
    const KVM_CREATE_VCPU: u64 = 0xAE41;
    const API_VERSION: c_int = 12;
    let ask = |file: &dyn AsRawFd, request: u64| {
        // SAFETY: these three requests take a plain number (machine type 0, processor number 0) and touch no memory
        // of ours.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    if ask(device, KVM_GET_API_VERSION)? != API_VERSION {
        return Err(io::Error::other("another version of the KVM interface"));
    }
    let machine = ask(device, KVM_CREATE_VM)?;
    // SAFETY: just made by the kernel, owned by nobody else.
    let machine = unsafe { OwnedFd::from_raw_fd(machine) };
    let processor = ask(&machine, KVM_CREATE_VCPU)?;
    // SAFETY: as above.
    drop(unsafe { OwnedFd::from_raw_fd(processor) });
    Ok(())
}
