//! Snapshots, moments of the past, volumes: what they hold, how they are named, who may touch them.

mod contents;
mod diff;
mod exclusions;
mod forgetting;
mod log;
mod names;
mod points;
mod policy;
mod purge;
mod restore;
mod restoring;
mod tree;
mod under_load;
mod volumes;
