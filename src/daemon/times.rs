//! Moments in JSON.

/// Serde of a [`Timestamp`] as RFC 3339.
pub mod rfc3339 {
    use crate::types::Timestamp;
    use crate::types::point;
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// Writes UTC.
    pub fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&point::rfc3339(*time))
    }

    /// Reads any zone.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(from)?;
        point::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

/// The same of a moment that may be missing.
pub mod rfc3339_option {
    use super::rfc3339;
    use crate::types::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Moment(#[serde(with = "rfc3339")] Timestamp);

    /// Writes UTC, or null.
    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        time.map(Moment).serialize(to)
    }

    /// Reads any zone.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<Moment>::deserialize(from)?.map(|moment| moment.0))
    }
}
