//! Why a stream is refused: what, where in the stream, and of which section or block.

/// Why bytes are no migration stream that can be taken apart. `at` is the offset in the stream of the item in question, in
/// bytes from its first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// It does not begin as a stream.
    #[error(
        "offset {at}: begins with {found:#010x} instead of 0x5145564d (QEVM): not a migration stream; libvirt's save \
         images have a header of their own before it"
    )]
    Magic {
        /// The first four bytes.
        found: u32,
        /// 0.
        at: u64,
    },
    /// Another version of the format.
    #[error("offset {at}: version {found} of the migration stream, only 3 is known")]
    Version {
        /// The version.
        found: u32,
        /// Where.
        at: u64,
    },
    /// The configuration section, which has the machine type, is not there.
    #[error(
        "offset {at}: the section {found} instead of CONFIGURATION: machine types older than 2.4 are not supported"
    )]
    NoConfiguration {
        /// The type of the section in its place.
        found: &'static str,
        /// Where.
        at: u64,
    },
    /// A name is empty, longer than 255 bytes or no text.
    #[error("offset {at}: the name of a {what} is empty, longer than 255 bytes or not UTF-8")]
    Name {
        /// Of what.
        what: &'static str,
        /// Where.
        at: u64,
    },
    /// An unknown part of the configuration.
    #[error("offset {at}: the subsection '{name}' of the configuration is not known")]
    Subsection {
        /// Its name.
        name: String,
        /// Where.
        at: u64,
    },
    /// A capability that changes how RAM is sent.
    #[error("offset {at}: written with the capability '{name}', switch it off")]
    Capability {
        /// Its name.
        name: String,
        /// Where.
        at: u64,
    },
    /// Pages of another size.
    #[error("offset {at}: pages of {bytes} bytes, only 4096 are known")]
    PageSize {
        /// Their size.
        bytes: u64,
        /// Where.
        at: u64,
    },
    /// A device other than RAM that is sent in steps; its sections have no length.
    #[error("offset {at}: the section '{name}' is sent in steps besides RAM: it cannot be delimited")]
    Iterable {
        /// The section's name.
        name: String,
        /// Where.
        at: u64,
    },
    /// Device state before RAM; it has no length.
    #[error("offset {at}: the section '{name}' of a device comes before RAM: it cannot be delimited")]
    BeforeRam {
        /// The section's name.
        name: String,
        /// Where.
        at: u64,
    },
    /// A section where none of this type belongs.
    #[error("offset {at}: a section of type {number} ({kind}) does not belong here")]
    Section {
        /// The type's number.
        number: u8,
        /// The type's name.
        kind: &'static str,
        /// Where.
        at: u64,
    },
    /// A part of a section that did not start.
    #[error("offset {at}: {kind} of section {section}, which is not that of RAM")]
    Foreign {
        /// The type's name.
        kind: &'static str,
        /// The section's number.
        section: u32,
        /// Where.
        at: u64,
    },
    /// Another version of the section of RAM.
    #[error("offset {at}: version {found} of the section 'ram', only 4 is known")]
    RamVersion {
        /// The version.
        found: u32,
        /// Where.
        at: u64,
    },
    /// A command to the receiver that asks for an answer or changes the format.
    #[error("offset {at}: the command {number} ({name}) is not for a file: migrate without that feature")]
    Command {
        /// Its number.
        number: u16,
        /// Its name.
        name: &'static str,
        /// Where.
        at: u64,
    },
    /// A page sent in a way that is not known.
    #[error("offset {at}: a record of RAM has the flag {flag}: migrate without that feature")]
    Flag {
        /// The flag's name.
        flag: &'static str,
        /// Where.
        at: u64,
    },
    /// Flags of a record that do not go together or not here.
    #[error("offset {at}: a record of RAM with the flags {flags:#05x} does not belong here")]
    Record {
        /// The flags.
        flags: u64,
        /// Where.
        at: u64,
    },
    /// Two blocks have one name.
    #[error("offset {at}: the RAM block '{block}' is listed twice")]
    DuplicateBlock {
        /// The name.
        block: String,
        /// Where.
        at: u64,
    },
    /// A block's size is no number of pages, or more than the list has left.
    #[error(
        "offset {at}: the RAM block '{block}' has {bytes} bytes: no multiple of 4096, or more than announced"
    )]
    BlockSize {
        /// The block.
        block: String,
        /// Its size.
        bytes: u64,
        /// Where.
        at: u64,
    },
    /// The section of RAM lists no blocks.
    #[error("offset {at}: the section 'ram' lists no blocks")]
    NoBlocks {
        /// Where.
        at: u64,
    },
    /// A page says that it is of the last block, and there is none.
    #[error("offset {at}: a page of the same block as the last page, but it is the first")]
    NoCurrentBlock {
        /// Where.
        at: u64,
    },
    /// A page of a block that is not listed.
    #[error("offset {at}: a page of the RAM block '{block}', which is not listed")]
    UnknownBlock {
        /// The name.
        block: String,
        /// Where.
        at: u64,
    },
    /// A page outside of its block.
    #[error("offset {at}: a page at {offset:#x} of the RAM block '{block}', which has {bytes:#x} bytes")]
    OutsideBlock {
        /// The block.
        block: String,
        /// Where in the block.
        offset: u64,
        /// The block's size.
        bytes: u64,
        /// Where in the stream.
        at: u64,
    },
    /// A section of RAM does not end as sections do.
    #[error(
        "offset {at}: the section 'ram' has no footer here: something unknown is in it, or the machine type is older \
         than 2.4"
    )]
    Footer {
        /// Where.
        at: u64,
    },
    /// More than the limits allow.
    #[error("offset {at}: more than {limit} {what}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Where.
        at: u64,
    },
    /// The stream ends before RAM does.
    #[error("offset {at}: the stream ends within {what}")]
    Truncated {
        /// What is incomplete.
        what: &'static str,
        /// Where that began.
        at: u64,
    },
    /// The stream does not end as a whole one does.
    #[error(
        "offset {at}: the device state does not end with a description of the VM: the stream was cut off, or the \
         machine has suppress-vmdesc=on, by which it cannot be seen whether it was"
    )]
    NoDescription {
        /// Where the stream ends.
        at: u64,
    },
    /// The description is not what QEMU writes.
    #[error("offset {at}: the description of the VM is not what QEMU writes: {why}")]
    Description {
        /// What JSON's parser says.
        why: String,
        /// Where it begins.
        at: u64,
    },
    /// A stream with pages was given as a skeleton.
    #[error("offset {at}: a page in a skeleton")]
    PageInSkeleton {
        /// Where in the skeleton, the page included.
        at: u64,
    },
}
