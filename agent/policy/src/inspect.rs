//! Owns the look at a component's imports and exports, before anything of it is compiled: compiling a component of
//! 18 MiB takes most of a minute, reading its outer sections takes a few milliseconds.

use std::collections::BTreeSet;

use understudy_core::policy::Interface;
use wasmparser::{Encoding, Parser, Payload};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::fault::FileFault;

/// The package of `wit/`.
const PACKAGE: &str = "understudy:policy/";

/// Versions of the interface that are compatible: see the rules for change in `wit/README.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Track {
    /// 0.1.x.
    V01,
    /// 0.2.x, on trial.
    V02,
}

impl Track {
    const ALL: [(&str, Self); 2] = [("0.1.", Self::V01), ("0.2.", Self::V02)];

    fn of(version: &str) -> Option<Self> {
        let is_patch = |rest: &str| rest.parse::<u32>().is_ok_and(|patch| patch.to_string() == rest);
        let fits = |start: &str| version.strip_prefix(start).is_some_and(is_patch);
        Self::ALL.into_iter().find(|(start, _)| fits(start)).map(|(_, track)| track)
    }
}
/// What a component may import: `types` holds no functions.
const IMPORTS: [&str; 2] = ["log", "types"];

/// What a component has to do with the world outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faces {
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) answers: BTreeSet<Interface>,
    /// The version that it speaks, and the name that says so.
    pub(crate) speaks: Option<(Track, String)>,
}

impl Faces {
    fn import(&mut self, name: &str) -> Result<(), FileFault> {
        self.imports.push(name.to_owned());
        match ours(name) {
            Some((interface, version)) if IMPORTS.contains(&interface) => self.speak(name, version),
            Some(_) | None => Err(FileFault::Import { name: name.to_owned() }),
        }
    }

    fn export(&mut self, name: &str) -> Result<(), FileFault> {
        self.exports.push(name.to_owned());
        // What is no question of ours is nobody's business.
        let Some((interface, version)) = ours(name) else { return Ok(()) };
        if let Some(found) = Interface::ALL.into_iter().find(|i| i.as_str() == interface) {
            self.speak(name, version)?;
            self.answers.insert(found);
        }
        Ok(())
    }

    fn speak(&mut self, name: &str, version: &str) -> Result<(), FileFault> {
        let track = Track::of(version).ok_or_else(|| FileFault::Version { name: name.to_owned() })?;
        match &self.speaks {
            Some((known, one)) if *known != track => {
                Err(FileFault::Mixed { one: one.clone(), other: name.to_owned() })
            }
            Some(_) => Ok(()),
            None => {
                self.speaks = Some((track, name.to_owned()));
                Ok(())
            }
        }
    }

    pub(crate) fn checked(self) -> Result<Self, FileFault> {
        if self.answers.is_empty() { Err(FileFault::NoInterface) } else { Ok(self) }
    }
}

/// The faces of the component in `bytes`, if it may be compiled at all.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Faces, FileFault> {
    let mut faces = Faces::default();
    look(bytes, &mut faces)?;
    faces.checked()
}

/// The faces of a component that is compiled: it may come from a cache that was filled by another release.
pub(crate) fn faces_of(engine: &Engine, component: &Component) -> Result<Faces, FileFault> {
    let mut faces = Faces::default();
    let kind = component.component_type();
    for (name, _) in kind.imports(engine) {
        faces.import(name)?;
    }
    for (name, _) in kind.exports(engine) {
        faces.export(name)?;
    }
    faces.checked()
}

/// Gather the faces of the component in `bytes`, as far as the first fault.
pub(crate) fn look(bytes: &[u8], faces: &mut Faces) -> Result<(), FileFault> {
    let mut outer = None;
    // How many modules and components we are inside of, the outermost not counted.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::Version { encoding, .. } if outer.is_none() => {
                if encoding == Encoding::Module {
                    return Err(FileFault::CoreModule);
                }
                outer = Some(encoding);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    faces.import(import.map_err(damaged)?.name.name)?;
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    faces.export(export.map_err(damaged)?.name.name)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn damaged(error: wasmparser::BinaryReaderError) -> FileFault {
    FileFault::Damaged { message: error.to_string() }
}

/// The interface and the version of a name of our package.
fn ours(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE)?.split_once('@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compatible_within_0_1_and_within_0_2() {
        for (version, track) in [
            ("0.1.0", Some(Track::V01)),
            ("0.1.17", Some(Track::V01)),
            ("0.2.0", Some(Track::V02)),
            ("0.1", None),
            ("0.3.0", None),
            ("0.1.+1", None),
            ("0.1.01", None),
            ("0.1.0-rc1", None),
            ("0.10.0", None),
        ] {
            assert_eq!(Track::of(version), track, "{version}");
        }
    }

    #[test]
    fn a_component_speaks_one_version() {
        let mut faces = Faces::default();
        faces.import("understudy:policy/log@0.2.0").unwrap();
        faces.export("understudy:policy/placement@0.2.7").unwrap();
        let fault = faces.export("understudy:policy/backup-count@0.1.0").unwrap_err().to_string();
        assert!(fault.contains("log@0.2.0 and understudy:policy/backup-count@0.1.0"), "{fault}");
    }

    #[test]
    fn only_our_log_and_types_can_be_imported() {
        let check_import = |name: &str| Faces::default().import(name);
        assert!(check_import("understudy:policy/log@0.1.0").is_ok());
        assert!(check_import("understudy:policy/types@0.1.3").is_ok());
        for (name, part) in [
            ("wasi:io/poll@0.2.9", "wasm32-unknown-unknown"),
            ("understudy:policy/placement@0.1.0", "may import only"),
            ("understudy:policy/log@0.3.0", "0.1 and 0.2"),
            ("log", "may import only"),
        ] {
            let fault = check_import(name).unwrap_err().to_string();
            assert!(fault.contains(part) && fault.contains(name), "{fault}");
        }
    }
}
