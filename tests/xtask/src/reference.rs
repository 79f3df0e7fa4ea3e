//! Writes the reference page of each version of the interface, from what `wit/` says.
//!
//! Promises that the page has every item with its text and nothing else, in the order of the files. A page that is
//! not fresh, and an item without a text, fail the tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wit_parser::{
    Docs, Function, Interface, PackageId, Resolve, Type, TypeDef, TypeDefKind, TypeId, World, WorldItem,
    WorldKey,
};

/// The folders of the versions, newest last.
const VERSIONS: [&str; 2] = ["wit", "wit/0.2"];
const PAGE: &str = "reference.md";

/// Writes every page, and gives their paths.
pub(crate) fn write(root: &Path) -> Result<Vec<PathBuf>> {
    let pages = VERSIONS.iter().map(|folder| {
        let path = root.join(folder).join(PAGE);
        fs::write(&path, Reference::read(&root.join(folder))?.page())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    });
    pages.collect()
}

struct Reference {
    resolve: Resolve,
    package: PackageId,
}

/// One page while it grows, and the items that had no text.
#[derive(Default)]
struct Page {
    text: String,
    silent: Vec<String>,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// The text of an item, which is missed where there is none.
    fn docs(&mut self, item: &str, docs: &Docs) {
        match text(docs) {
            Some(text) => self.line(&format!("\n{text}")),
            None => self.silent.push(item.to_owned()),
        }
    }

    /// One row for a part of an item.
    fn row(&mut self, item: &str, cells: &[String], docs: &Docs) {
        let text = text(docs).unwrap_or_default();
        if text.is_empty() {
            self.silent.push(item.to_owned());
        }
        let cells = cells.join(" | ");
        self.line(&format!("| {cells} | {} |", text.replace('\n', " ").replace('|', "\\|")));
    }
}

fn text(docs: &Docs) -> Option<&str> {
    docs.contents.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

impl Reference {
    fn read(folder: &Path) -> Result<Self> {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        Ok(Self { resolve, package })
    }

    fn page(&self) -> String {
        self.write().text
    }

    fn write(&self) -> Page {
        let package = &self.resolve.packages[self.package];
        let mut page = Page::default();
        page.line(&format!("# {}", package.name));
        page.line(
            "\nWritten by `cargo xtask policies --reference` from the `.wit` files beside it. Change those.",
        );
        page.docs("the package", &package.docs);
        for world in package.worlds.values() {
            self.world(&mut page, &self.resolve.worlds[*world]);
        }
        for (name, interface) in &package.interfaces {
            self.interface(&mut page, name, &self.resolve.interfaces[*interface]);
        }
        page
    }

    fn world(&self, page: &mut Page, world: &World) {
        page.line(&format!("\n## World `{}`", world.name));
        page.docs(&world.name, &world.docs);
        page.line("");
        for (what, items) in [("Imports", &world.imports), ("Exports", &world.exports)] {
            let names = items.iter().filter_map(|(key, item)| self.world_item(key, item));
            page.line(&format!("- {what} {}.", names.collect::<Vec<_>>().join(", ")));
        }
    }

    fn world_item(&self, key: &WorldKey, item: &WorldItem) -> Option<String> {
        match item {
            WorldItem::Interface { id, .. } => {
                let name = self.resolve.interfaces[*id].name.as_deref()?;
                Some(format!("[`{name}`](#interface-{name})"))
            }
            WorldItem::Function(_) | WorldItem::Type { .. } => {
                Some(format!("`{}`", self.resolve.name_world_key(key)))
            }
        }
    }

    fn interface(&self, page: &mut Page, name: &str, interface: &Interface) {
        page.line(&format!("\n## Interface `{name}`"));
        page.docs(name, &interface.docs);
        let used: Vec<String> = interface
            .types
            .values()
            .filter_map(|id| match &self.resolve.types[*id].kind {
                TypeDefKind::Type(Type::Id(origin)) => Some(self.link(*origin)),
                _ => None,
            })
            .collect();
        if !used.is_empty() {
            page.line(&format!("\nUses {}.", used.join(", ")));
        }
        for function in interface.functions.values() {
            self.function(page, name, function);
        }
        for id in interface.types.values() {
            self.type_def(page, name, &self.resolve.types[*id]);
        }
    }

    fn function(&self, page: &mut Page, interface: &str, function: &Function) {
        let parameters = function.params.iter().map(|p| format!("{}: {}", p.name, self.name(&p.ty)));
        let result = function.result.as_ref().map_or(String::new(), |ty| format!(" -> {}", self.name(ty)));
        page.line(&format!("\n### `{interface}.{}`", function.name));
        let parameters = parameters.collect::<Vec<_>>().join(", ");
        page.line(&format!("\n    {}: func({parameters}){result}", function.name));
        page.docs(&format!("{interface}.{}", function.name), &function.docs);
    }

    fn type_def(&self, page: &mut Page, interface: &str, def: &TypeDef) {
        let item = format!("{interface}.{}", def.name.as_deref().unwrap_or("?"));
        let head = |page: &mut Page, kind: &str, columns: &str| {
            page.line(&format!("\n### `{item}`"));
            page.line(&format!("\n*{kind}*"));
            page.docs(&item, &def.docs);
            page.line(&format!("\n{columns}"));
            page.line(&format!("|{}", "---|".repeat(columns.matches('|').count() - 1)));
        };
        let part = |name: &str| format!("{item}.{name}");
        match &def.kind {
            TypeDefKind::Record(record) => {
                head(page, "record", "| field | type | |");
                for field in &record.fields {
                    let cells = [format!("`{}`", field.name), self.linked(&field.ty)];
                    page.row(&part(&field.name), &cells, &field.docs);
                }
            }
            TypeDefKind::Enum(cases) => {
                head(page, "enum", "| case | |");
                for case in &cases.cases {
                    page.row(&part(&case.name), &[format!("`{}`", case.name)], &case.docs);
                }
            }
            TypeDefKind::Variant(variant) => {
                head(page, "variant", "| case | holds | |");
                for case in &variant.cases {
                    let holds = case.ty.as_ref().map_or(String::new(), |ty| self.linked(ty));
                    page.row(&part(&case.name), &[format!("`{}`", case.name), holds], &case.docs);
                }
            }
            // Told where it comes from.
            TypeDefKind::Type(Type::Id(_)) => {}
            _ => {
                page.line(&format!("\n### `{item}`"));
                page.docs(&item, &def.docs);
            }
        }
    }

    /// A type as `wit/` writes it.
    fn name(&self, ty: &Type) -> String {
        match ty {
            Type::Id(id) => self.name_of(*id, &|id| self.plain(id)),
            primitive => primitive_name(primitive),
        }
    }

    /// The same with links to where its parts are described.
    fn linked(&self, ty: &Type) -> String {
        let linked = match ty {
            Type::Id(id) => self.name_of(*id, &|id| self.link(id)),
            primitive => primitive_name(primitive),
        };
        // What stands in angle brackets would be taken for markup.
        if linked.contains('[') { linked.replace('<', "\\<") } else { format!("`{linked}`") }
    }

    /// `named` writes a type that has a name; what is made of others is written out.
    fn name_of(&self, id: TypeId, named: &dyn Fn(TypeId) -> String) -> String {
        let def = &self.resolve.types[id];
        let inner = |ty: &Type| match ty {
            Type::Id(id) => self.name_of(*id, named),
            primitive => primitive_name(primitive),
        };
        let optional = |ty: &Option<Type>| ty.as_ref().map_or("_".to_owned(), inner);
        match &def.kind {
            TypeDefKind::Type(Type::Id(origin)) => self.name_of(*origin, named),
            TypeDefKind::List(ty) => format!("list<{}>", inner(ty)),
            TypeDefKind::Option(ty) => format!("option<{}>", inner(ty)),
            TypeDefKind::Result(result) => {
                format!("result<{}, {}>", optional(&result.ok), optional(&result.err))
            }
            TypeDefKind::Tuple(tuple) => {
                format!("tuple<{}>", tuple.types.iter().map(inner).collect::<Vec<_>>().join(", "))
            }
            _ => named(id),
        }
    }

    fn plain(&self, id: TypeId) -> String {
        self.resolve.types[id].name.clone().unwrap_or_default()
    }

    /// A link to a type that has a name, wherever it is defined.
    fn link(&self, id: TypeId) -> String {
        let def = &self.resolve.types[id];
        let name = self.plain(id);
        let wit_parser::TypeOwner::Interface(owner) = def.owner else { return format!("`{name}`") };
        let owner = self.resolve.interfaces[owner].name.as_deref().unwrap_or_default();
        // As headings are named: what is neither a letter, a digit nor a hyphen is left out.
        format!("[`{name}`](#{owner}{name})")
    }
}

fn primitive_name(ty: &Type) -> String {
    let name = match ty {
        Type::Bool => "bool",
        Type::U8 => "u8",
        Type::U16 => "u16",
        Type::U32 => "u32",
        Type::U64 => "u64",
        Type::S8 => "s8",
        Type::S16 => "s16",
        Type::S32 => "s32",
        Type::S64 => "s64",
        Type::F32 => "f32",
        Type::F64 => "f64",
        Type::Char => "char",
        Type::String => "string",
        Type::ErrorContext => "error-context",
        Type::Id(_) => "",
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_fresh() {
        let root = crate::root();
        for folder in VERSIONS {
            let path = root.join(folder).join(PAGE);
            let written = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let page = Reference::read(&root.join(folder)).unwrap().page();
            assert!(written == page, "{folder}/{PAGE} is stale: run `cargo xtask policies --reference`");
        }
    }

    #[test]
    fn every_item_of_the_interface_says_what_it_is() {
        for folder in VERSIONS {
            let silent = Reference::read(&crate::root().join(folder)).unwrap().write().silent;
            assert_eq!(silent, [""; 0], "{folder} has items without a text");
        }
    }

    #[test]
    fn a_page_has_every_kind_of_item_and_items_without_a_text_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let source = "/// All of it.\npackage a:b@0.1.0;\n\
            /// I.\ninterface i {\n\
            /// E.\nenum e {\n/// One.\none,\ntwo }\n\
            /// V | W.\nvariant v {\n/// T.\nt(list<e>), u }\n\
            record r { \n/// F.\nf: option<v>, \n/// G.\ng: list<u32> }\n\
            /// Asks.\nask: func(r: r, n: u32) -> result<list<e>, string>;\n}\n\
            world w { import i; }\n";
        fs::write(folder.path().join("i.wit"), source).unwrap();
        let page = Reference::read(folder.path()).unwrap().write();
        assert_eq!(page.silent, ["w", "i.e.two", "i.v.u", "i.r"]);
        for part in [
            "# a:b@0.1.0\n",
            "\nAll of it.\n",
            "- Imports [`i`](#interface-i).\n",
            "    ask: func(r: r, n: u32) -> result<list<e>, string>\n\nAsks.\n",
            "### `i.e`\n\n*enum*\n\nE.\n\n| case | |\n|---|---|\n| `one` | One. |\n| `two` |  |\n",
            "\nV | W.\n\n| case | holds | |\n|---|---|---|\n| `t` | list\\<[`e`](#ie)> | T. |\n",
            "| `f` | option\\<[`v`](#iv)> | F. |\n",
            "| `g` | `list<u32>` | G. |\n",
        ] {
            assert!(page.text.contains(part), "{part:?} is not in\n{}", page.text);
        }
    }
}
