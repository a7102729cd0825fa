//! Which file of a crate needs which other, read from its source.
//!
//! An arrow is a `use`, a path, or an inherent `impl` outside the file that defines the type. A name that comes through a
//! re-export counts for the file that defines it. Declaring a module is no arrow, and neither is calling a method.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Item, UseTree};

use super::source::{Texts, is_test, items};

/// What a path may begin with besides a name.
const KEYWORDS: &[&str] = &["crate", "self", "super"];

/// A path of a module or of an item, from the crate's root.
type Names = Vec<String>;

/// One arrow and the names that make it.
pub(super) type Arrows = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

#[derive(Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// What is defined in it.
    defined: BTreeSet<String>,
    /// What is imported into it: the name here, and the paths as they are written. Names of types and of functions differ.
    imported: BTreeMap<String, Vec<Names>>,
    /// Paths of `use path::*`.
    globs: Vec<Names>,
    /// Every path in its code, as it is written.
    paths: BTreeSet<Names>,
}

impl Module {
    fn import(&mut self, name: String, path: Names) {
        self.imported.entry(name).or_default().push(path);
    }
}

/// The modules of a crate.
#[derive(Default)]
struct Modules(BTreeMap<Names, Module>);

/// Collects the paths of a module's code.
struct Paths<'a>(&'a mut BTreeSet<Names>);

impl Visit<'_> for Paths<'_> {
    /// One inside of a function.
    fn visit_item_use(&mut self, import: &syn::ItemUse) {
        let mut module = Module::default();
        imports(&import.tree, &[], &mut module);
        self.0.extend(module.imported.into_values().flatten().chain(module.globs));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.leading_colon.is_none() {
            self.0.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    /// `pub(crate)` and its kin name no item.
    fn visit_visibility(&mut self, _: &syn::Visibility) {}

    fn visit_macro(&mut self, call: &syn::Macro) {
        tokens(&call.tokens, self.0);
        visit::visit_macro(self, call);
    }
}

/// The paths in the arguments of a macro, which no parser knows.
fn tokens(stream: &TokenStream, paths: &mut BTreeSet<Names>) {
    let mut path = Names::new();
    let mut colons = 0;
    for token in stream.clone() {
        match token {
            TokenTree::Ident(name) => {
                if colons != 2 && !path.is_empty() {
                    paths.insert(std::mem::take(&mut path));
                }
                path.push(name.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            other => {
                if !path.is_empty() {
                    paths.insert(std::mem::take(&mut path));
                }
                colons = 0;
                if let TokenTree::Group(group) = other {
                    tokens(&group.stream(), paths);
                }
            }
        }
    }
    if !path.is_empty() {
        paths.insert(path);
    }
}

fn imports(tree: &UseTree, before: &[String], module: &mut Module) {
    let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Names>();
    match tree {
        UseTree::Path(path) => imports(&path.tree, &with(&path.ident), module),
        UseTree::Name(name) if name.ident == "self" => {
            module.import(before.last().cloned().unwrap_or_default(), before.to_vec());
        }
        UseTree::Name(name) => {
            module.import(name.ident.to_string(), with(&name.ident));
        }
        UseTree::Rename(rename) => {
            module.import(rename.rename.to_string(), with(&rename.ident));
        }
        UseTree::Glob(_) => module.globs.push(before.to_vec()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| imports(tree, before, module)),
    }
}

impl Modules {
    fn read(texts: &Texts) -> Self {
        let mut modules = Self::default();
        for (file, text) in texts {
            let path = file.trim_end_matches(".rs").split('/').map(str::to_owned);
            let mut path: Names = path.collect();
            if matches!(path.last().map(String::as_str), Some("lib" | "main" | "mod")) {
                path.pop();
            }
            modules.add(path, file, items(file, text));
        }
        modules
    }

    fn add(&mut self, path: Names, file: &str, items: Vec<Item>) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        for item in items {
            let defined = match &item {
                Item::Const(item) => Some(&item.ident),
                Item::Enum(item) => Some(&item.ident),
                Item::Fn(item) => Some(&item.sig.ident),
                Item::Static(item) => Some(&item.ident),
                Item::Struct(item) => Some(&item.ident),
                Item::Trait(item) => Some(&item.ident),
                Item::Type(item) => Some(&item.ident),
                Item::Union(item) => Some(&item.ident),
                Item::Macro(item) => item.ident.as_ref(),
                _ => None,
            };
            module.defined.extend(defined.map(ToString::to_string));
            match item {
                Item::Use(import) => {
                    if import.leading_colon.is_none() {
                        imports(&import.tree, &[], &mut module);
                    }
                }
                Item::Mod(inner) => {
                    module.children.insert(inner.ident.to_string());
                    if let Some((_, items)) = inner.content.filter(|_| !is_test(&inner.attrs)) {
                        let inside = path.iter().cloned().chain([inner.ident.to_string()]).collect();
                        self.add(inside, file, items);
                    }
                }
                // What a macro of this crate defines is not known, so its arguments count as uses alone.
                other => Paths(&mut module.paths).visit_item(&other),
            }
        }
        self.0.insert(path, module);
    }

    /// The file that defines what `path` means in the module `here`; `None` where that is in no file of the crate. `inside`:
    /// the path has led to this module, so a name that is not known here is one that a macro makes here.
    fn file_of(&self, here: &[String], path: &[String], inside: bool, depth: u32) -> Option<&str> {
        let module = self.0.get(here)?;
        let Some((first, rest)) = path.split_first() else { return Some(&module.file) };
        if depth > 16 {
            return None; // a name that is imported from itself
        }
        let (parent, depth) = (here.split_last().map(|(_, parent)| parent), depth + 1);
        match first.as_str() {
            "crate" => return self.file_of(&[], rest, true, depth),
            "self" => return self.file_of(here, rest, true, depth),
            "super" => return self.file_of(parent?, rest, true, depth),
            _ => {}
        }
        if module.defined.contains(first) {
            return Some(&module.file);
        }
        if module.children.contains(first) {
            let child: Names = here.iter().cloned().chain([first.clone()]).collect();
            return self.file_of(&child, rest, true, depth);
        }
        let imported = module.imported.get(first).into_iter().flatten();
        let mut imported = imported.filter(|import| import.first() != Some(first));
        let found = imported.find_map(|import| {
            let whole: Names = import.iter().chain(rest).cloned().collect();
            self.file_of(here, &whole, false, depth)
        });
        let mut globs = module.globs.iter().filter(|glob| glob.first() != Some(first));
        let found = found.or_else(|| {
            globs.find_map(|glob| {
                let whole: Names = glob.iter().chain(path).cloned().collect();
                self.file_of(here, &whole, false, depth)
            })
        });
        let external = module.imported.contains_key(first);
        found.or_else(|| (inside && !external).then_some(module.file.as_str()))
    }
}

/// The arrows between the files of a crate.
pub(super) fn arrows(texts: &Texts) -> Arrows {
    let modules = Modules::read(texts);
    let mut arrows = Arrows::new();
    for (here, module) in &modules.0 {
        // A name by itself may be a variable's, never a module's; and `crate` by itself is a visibility in a macro.
        let alone = |name: &String| module.children.contains(name) || KEYWORDS.contains(&name.as_str());
        let plain = |path: &&Names| path.len() > 1 || !alone(&path[0]);
        let written =
            module.paths.iter().filter(plain).chain(module.imported.values().flatten()).chain(&module.globs);
        for path in written {
            if let Some(to) = modules.file_of(here, path, false, 0).filter(|to| *to != module.file) {
                let names = arrows.entry(module.file.clone()).or_default().entry(to.to_owned()).or_default();
                names.insert(path.last().cloned().unwrap_or_default());
            }
        }
    }
    arrows
}
