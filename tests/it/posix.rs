//! What POSIX and ext4 promise to programs: everything is done to a mount and to a plain ext4 directory, and
//! both must answer alike.

mod access_times;
mod acls;
mod acls_kept;
mod copies;
mod deviations;
mod direct;
mod fallocate;
mod files;
mod groups;
mod holes;
mod identity;
mod limits;
mod links;
mod listings;
mod locks;
mod metadata;
mod names;
mod privileges;
mod read_only;
mod rights;
mod sharing;
mod space;
mod sparse;
mod times;
mod xattrs;
