//! POSIX ACLs as the kernel takes them: the value of an extended attribute.

/// The ACL that decides about a file.
pub const ACCESS: &str = "system.posix_acl_access";
/// The ACL that a directory hands on.
pub const DEFAULT: &str = "system.posix_acl_default";

/// The number of entries that name nobody.
const NOBODY_NAMED: u32 = u32::MAX;

/// The attribute's value for entries like `u:rwx u1000:r-- g:r-x g7:--- m:rwx o:r--`, in that order.
pub fn acl(text: &str) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for entry in text.split_whitespace() {
        let (who, rights) = entry.split_once(':').unwrap_or_else(|| panic!("no rights in {entry:?}"));
        let (kind, id) = who.split_at(1);
        let tag: u16 = match (kind, id.is_empty()) {
            ("u", true) => 0x01,
            ("u", false) => 0x02,
            ("g", true) => 0x04,
            ("g", false) => 0x08,
            ("m", true) => 0x10,
            ("o", true) => 0x20,
            _ => panic!("{entry:?} is no entry of an ACL"),
        };
        let bits = rights.chars().zip("rwx".chars()).map(|(is, letter)| u16::from(is == letter));
        let rights = bits.fold(0, |sum, bit| sum * 2 + bit);
        let id = if id.is_empty() { NOBODY_NAMED } else { id.parse().expect("a number") };
        value.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}
