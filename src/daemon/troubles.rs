//! What a part of the server has to say to the operator for as long as it lasts.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// One sentence for each part that has trouble.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<BTreeMap<&'static str, String>>);

impl Troubles {
    /// `part` has trouble from now on, or (`None`) no more. It is logged when it is new.
    pub fn set(&self, part: &'static str, trouble: Option<String>) {
        let mut all = self.0.lock();
        match trouble {
            Some(text) if all.get(part) != Some(&text) => {
                tracing::warn!("{text}");
                all.insert(part, text);
            }
            Some(_) => {}
            None => drop(all.remove(part)),
        }
    }

    /// All sentences.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().values().cloned().collect()
    }
}
