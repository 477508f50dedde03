//! The store as an operator meets it: exit codes, keys, recovery, damage, secrecy.

mod campaign;
mod codes;
mod damage;
mod failing;
mod full;
mod keys;
mod patient;
mod recovery;
mod repair;
mod rows;
mod scrub;
mod secrecy;
mod space;
