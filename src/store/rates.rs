//! What the watch over a store's volumes remembers over restarts: the file `rates`, sealed. It belongs to this
//! copy of the store, and losing it loses nothing else.

use super::Store;
use crate::types::Result;
use crate::types::disk::{read_file, replace_file};
use crate::types::error::IoContext;
use crate::types::limits::RATES_BYTES_MAX;

const AAD: &[u8] = b"rates";

impl Store {
    /// What was written last; None where nothing readable is there.
    pub fn read_rates(&self) -> Option<Vec<u8>> {
        let bytes = read_file(&*self.disk, &self.layout.rates, RATES_BYTES_MAX).ok()?;
        self.sealer.open(AAD, &bytes).ok()
    }

    /// Writes it anew, in one step.
    ///
    /// # Errors
    /// From the disk.
    pub fn write_rates(&self, plain: &[u8]) -> Result<()> {
        let invalid = |e: crate::store::keys::SealError| crate::types::Error::Invalid(e.to_string());
        let sealed = self.sealer.seal(AAD, plain).map_err(invalid)?;
        replace_file(&*self.disk, &self.layout.rates, &sealed).at("writing", &self.layout.rates)
    }
}
