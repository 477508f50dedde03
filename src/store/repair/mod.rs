//! `fsck --repair`: mends what can be mended of a store that nobody has open. First a plan, which changes
//! nothing; then, if it is agreed to, its steps. What they take out of the way is kept in `repair-<seconds>/`.

mod plan;
mod steps;

use std::path::{Path, PathBuf};

pub use plan::{Plan, Step};

use super::check::Findings;
use super::layout::{Layout, identify};
use super::open::{self, Lock, OpenMode, OpenOptions};
use super::replay::Progress;
use super::{Store, problem::Part};
use crate::types::{Error, Result};
use steps::Aside;

/// What came of a repair.
#[derive(Debug)]
pub struct Repaired {
    /// What was done, or would be.
    pub plan: Plan,
    /// What the store was found to be; after the repair, if there was one.
    pub findings: Findings,
    /// Where what was moved aside lies, once something was done.
    pub aside: Option<PathBuf>,
    /// The step that failed, and why; those after it were not done.
    pub failed: Option<String>,
}

/// Plans the repair of the store in `root`, and carries it out if `agreed` is the plan's id.
///
/// # Errors
/// As [`Store::open`]; [`Error::Invalid`] when the plan is another one than was agreed to.
pub fn repair(
    root: &Path,
    options: &OpenOptions,
    agreed: Option<&str>,
    progress: Progress<'_>,
) -> Result<Repaired> {
    let root = std::fs::canonicalize(root).map_err(|_| Error::NoStore(root.to_owned()))?;
    identify(&root)?;
    let layout = Layout::new(&root);
    // Held from the look to the last step, so that what is mended is what was looked at.
    let lock = open::lock(&layout)?;
    let reading = OpenOptions { mode: OpenMode::ReadOnly, ..options.clone() };
    let store = Store::open_locked(layout.clone(), lock.clone(), reading, progress)?;
    let findings = store.check(progress)?;
    let plan = store.plan_repair(&findings)?;
    drop(store);
    let Some(agreed) = agreed else {
        return Ok(Repaired { plan, findings, aside: None, failed: None });
    };
    if agreed != plan.id() {
        return Err(Error::Invalid(
            "the store has changed since the repair was planned; plan it again".into(),
        ));
    }
    if plan.steps.is_empty() {
        return Ok(Repaired { plan, findings, aside: None, failed: None });
    }
    let aside = Aside::make(&layout, &*options.disk, &plan)?;
    let failed = carry_out(&layout, &lock, options, &plan, &aside, progress).err();
    let findings = look_again(layout, lock, options, progress).unwrap_or_else(|e| {
        let mut left = Findings::default();
        left.problem(Part::Small, format!("the store does not open: {e}"));
        left
    });
    let aside = Some(aside.path().to_owned());
    Ok(Repaired { plan, findings, aside, failed })
}

fn carry_out(
    layout: &Layout,
    lock: &Lock,
    options: &OpenOptions,
    plan: &Plan,
    aside: &Aside<'_>,
    progress: Progress<'_>,
) -> Result<(), String> {
    let failing = |step: &Step| {
        let step = step.to_string();
        move |e: Error| format!("{step}: {e}")
    };
    for step in &plan.steps {
        progress(&step.to_string(), 0);
        aside.on_files(layout, step).map_err(failing(step))?;
    }
    let give_up_chunks = plan.steps.iter().any(|s| matches!(s, Step::GiveUp { .. }));
    let writing = OpenOptions { mode: OpenMode::ReadWrite, give_up_chunks, ..options.clone() };
    let opened = Store::open_locked(layout.clone(), lock.clone(), writing, progress);
    let store = opened.map_err(|e| format!("opening the store: {e}"))?;
    if let Some(reason) = store.read_only() {
        return Err(format!("the store is still read-only: {reason}"));
    }
    for step in &plan.steps {
        match step {
            Step::GiveUp { chunks } => store.index.give_up(chunks),
            Step::Rewrite => store.index.rewrite_tables(),
            Step::Recount => store.index.recount(),
            _ => Ok(()),
        }
        .map_err(failing(step))?;
    }
    // What the index now says is not in the journal, so that an older checkpoint would not have it.
    let settled = store.close().and_then(|()| store.checkpoint());
    settled.map_err(|e| format!("making the repair durable: {e}"))
}

fn look_again(layout: Layout, lock: Lock, options: &OpenOptions, progress: Progress<'_>) -> Result<Findings> {
    let reading = OpenOptions { mode: OpenMode::ReadOnly, ..options.clone() };
    Store::open_locked(layout, lock, reading, progress)?.check(progress)
}
