//! The store as an operator meets it: exit codes, keys, recovery, damage, secrecy.

mod codes;
mod damage;
mod keys;
mod recovery;
mod secrecy;
