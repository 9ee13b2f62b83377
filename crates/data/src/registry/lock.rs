//! Which packages of a lock file every user has: a walk over its dependency graph.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{RegistryError, RegistryOptions};

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// None for packages of the workspace.
    source: Option<String>,
    /// `name`, or `name version`, or `name version (source)`: as much as it takes to be unique.
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Package {
    fn folder_name(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }

    fn is_meant_by(&self, dependency: &str) -> bool {
        let mut words = dependency.split(' ');
        words.next() == Some(&self.name) && words.next().is_none_or(|version| version == self.version)
    }
}

/// `NAME-VERSION` of the registry packages that the root needs on every platform, sorted; of each name the newest
/// version only.
///
/// `folder_of` finds an unpacked package, whose manifest says which of its dependencies depend on the platform.
/// Without a manifest nothing behind that package is followed: it is missing, and one that is missing is enough.
pub(super) fn needed<'a>(
    lock: &str,
    options: &RegistryOptions,
    folder_of: &dyn Fn(&str) -> Option<&'a Path>,
) -> Result<BTreeSet<String>, RegistryError> {
    let packages = toml::from_str::<Lock>(lock).map_err(RegistryError::Lock)?.package;
    let workspace = Workspace::new(&options.manifests)?;
    let mut by_name: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    packages.iter().for_each(|package| by_name.entry(&package.name).or_default().push(package));
    let roots = by_name.get(options.root.as_str()).into_iter().flatten();
    let mut to_visit: Vec<&Package> = roots.copied().filter(|package| package.source.is_none()).collect();
    if to_visit.is_empty() {
        return Err(RegistryError::Root { root: options.root.clone() });
    }
    let mut visited = BTreeSet::new();
    while let Some(package) = to_visit.pop() {
        if !visited.insert(package.folder_name()) {
            continue;
        }
        let follow = match package.source {
            None => workspace.dependencies(&package.name)?,
            Some(_) => registry_dependencies(folder_of(&package.folder_name())),
        };
        for dependency in &package.dependencies {
            let name = dependency.split(' ').next().unwrap_or_default();
            if follow.contains(name) {
                let meant = by_name.get(name).into_iter().flatten().filter(|p| p.is_meant_by(dependency));
                to_visit.extend(meant.copied());
            }
        }
    }
    // Lock files list the versions of a name from old to new, so the newest overwrites.
    let needed = packages.iter().filter(|p| p.source.is_some() && visited.contains(&p.folder_name()));
    let newest: BTreeMap<&str, &Package> = needed.map(|package| (package.name.as_str(), package)).collect();
    Ok(newest.values().map(|package| package.folder_name()).collect())
}

/// The manifests of the workspace by package name.
struct Workspace {
    members: BTreeMap<String, Table>,
    /// `[workspace.dependencies]`, which tells the package behind `alias.workspace = true`.
    shared: Table,
}

impl Workspace {
    fn new(manifests: &[String]) -> Result<Self, RegistryError> {
        let mut workspace = Workspace { members: BTreeMap::new(), shared: Table::new() };
        for manifest in manifests {
            let manifest: Table = toml::from_str(manifest).map_err(RegistryError::Manifest)?;
            if let Some(shared) = path(&manifest, &["workspace", "dependencies"]).and_then(Value::as_table) {
                workspace.shared = shared.clone();
            }
            if let Some(name) = path(&manifest, &["package", "name"]).and_then(Value::as_str) {
                workspace.members.insert(name.to_owned(), manifest);
            }
        }
        Ok(workspace)
    }

    /// What every build of a member needs: neither optional nor for tests only.
    fn dependencies(&self, member: &str) -> Result<BTreeSet<String>, RegistryError> {
        let Some(manifest) = self.members.get(member) else {
            return Err(RegistryError::ManifestMissing { member: member.to_owned() });
        };
        let is_optional = |value: &Value| value.get("optional").and_then(Value::as_bool) == Some(true);
        let needed = dependencies(manifest).filter(|(_, value)| !is_optional(value));
        Ok(needed
            .map(|(alias, value)| match self.shared.get(alias) {
                Some(shared) if value.get("workspace").is_some() => package_name(alias, shared),
                _ => package_name(alias, value),
            })
            .collect())
    }
}

/// What a package of the registry needs on every platform. Optional dependencies count, because a lock file lists
/// them only if something turns them on.
fn registry_dependencies(folder: Option<&Path>) -> BTreeSet<String> {
    let text = folder.and_then(|folder| fs::read_to_string(folder.join("Cargo.toml")).ok());
    let manifest: Option<Table> = text.and_then(|text| toml::from_str(&text).ok());
    let manifest = manifest.unwrap_or_default();
    dependencies(&manifest).map(|(alias, value)| package_name(alias, value)).collect()
}

/// The entries of `[dependencies]` and `[build-dependencies]`, which hold on every platform.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&String, &Value)> {
    let tables = ["dependencies", "build-dependencies", "build_dependencies"];
    tables.into_iter().filter_map(|table| manifest.get(table)?.as_table()).flatten()
}

/// A renamed dependency is listed in the lock file under its own name.
fn package_name(alias: &str, value: &Value) -> String {
    value.get("package").and_then(Value::as_str).unwrap_or(alias).to_owned()
}

fn path<'a>(table: &'a Table, keys: &[&str; 2]) -> Option<&'a Value> {
    table.get(keys[0])?.get(keys[1])
}
