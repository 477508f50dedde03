//! Policies as people write them: `every=15m continuous=24h hourly=48 history-max=20% on-close='ckpt/**'`.

use std::str::FromStr;

use super::Globs;
use crate::store::model::{Policy, Share};
use crate::types::Timestamp;
use crate::types::limits::{GLOB_BYTES_MAX, GLOBS_MAX, POLICY_SECS_MAX, RETENTION_MAX, WEBHOOK_BYTES_MAX};
use crate::types::point::{age_text, parse_age};

/// Why a text is not a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

/// One change of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Seconds between scheduled snapshots; 0: none.
    Every(u64),
    /// Seconds of the continuous window; 0: none.
    Continuous(u64),
    /// Scheduled snapshots kept of recent hours.
    Hourly(u32),
    /// Of days.
    Daily(u32),
    /// Of weeks.
    Weekly(u32),
    /// Of months.
    Monthly(u32),
    /// Of years.
    Yearly(u32),
    /// What history may take.
    HistoryMax(Share),
    /// What stays free.
    FreeMin(Share),
    /// Files of which each completed version gets a snapshot.
    OnClose(Vec<String>),
    /// Seconds for which nothing can be forgotten; 0: none.
    Immutable(u64),
    /// Where alerts are sent; empty: nowhere.
    Webhook(String),
    /// What gets no history.
    Exclude(Vec<String>),
}

const KEYS: &str = "every, continuous, hourly, daily, weekly, monthly, yearly, history-max, free-min, on-close, \
                    exclude, immutable, webhook";

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Setting, SettingError> {
        let bad = |why: String| SettingError(format!("{text:?}: {why}"));
        let (key, value) = text.split_once('=').ok_or_else(|| bad("a setting is KEY=VALUE".into()))?;
        let period = || {
            if matches!(value, "off" | "never" | "0") {
                return Ok(0);
            }
            let secs =
                parse_age(value).map(|age| age.as_secs()).filter(|s| (1..=POLICY_SECS_MAX).contains(s));
            secs.ok_or_else(|| {
                bad("a period is a number with s, m, h, d or w, up to 100 years, or off".into())
            })
        };
        let count = || {
            let count = value.parse().ok().filter(|n| *n <= RETENTION_MAX);
            count.ok_or_else(|| bad(format!("it is a number up to {RETENTION_MAX}")))
        };
        let share =
            || share(value).ok_or_else(|| bad("it is a part such as 20% or a size such as 500G".into()));
        Ok(match key {
            "every" => Setting::Every(period()?),
            "continuous" => Setting::Continuous(period()?),
            "hourly" => Setting::Hourly(count()?),
            "daily" => Setting::Daily(count()?),
            "weekly" => Setting::Weekly(count()?),
            "monthly" => Setting::Monthly(count()?),
            "yearly" => Setting::Yearly(count()?),
            "history-max" => Setting::HistoryMax(share()?),
            "free-min" => Setting::FreeMin(share()?),
            "on-close" => Setting::OnClose(glob(value).map_err(SettingError)?),
            "exclude" => Setting::Exclude(glob(value).map_err(SettingError)?),
            "immutable" => Setting::Immutable(period()?),
            "webhook" if matches!(value, "off" | "") => Setting::Webhook(String::new()),
            "webhook" => {
                check_address(value).map_err(bad)?;
                Setting::Webhook(value.to_owned())
            }
            _ => return Err(bad(format!("there is no such setting; there are {KEYS}"))),
        })
    }
}

impl Setting {
    /// Reads settings; several `on-close` make one list, and several `exclude`.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn all(texts: &[String]) -> Result<Vec<Setting>, SettingError> {
        let mut settings: Vec<Setting> = Vec::with_capacity(texts.len());
        for text in texts {
            let setting: Setting = text.parse()?;
            let same =
                settings.iter_mut().find(|s| std::mem::discriminant(*s) == std::mem::discriminant(&setting));
            match (same, setting) {
                (None, setting) => settings.push(setting),
                (Some(Setting::OnClose(all)), Setting::OnClose(more))
                | (Some(Setting::Exclude(all)), Setting::Exclude(more)) => all.extend(more),
                (Some(_), _) => return Err(SettingError(format!("{text:?}: it was set before"))),
            }
        }
        for setting in &settings {
            if let Setting::OnClose(globs) | Setting::Exclude(globs) = setting {
                if globs.len() > GLOBS_MAX {
                    return Err(SettingError(format!("there can be {GLOBS_MAX} globs")));
                }
                Globs::new(globs).map_err(SettingError)?;
            }
        }
        Ok(settings)
    }

    /// Changes `policy`.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn apply(&self, policy: &mut Policy, now: Timestamp) -> Result<(), &'static str> {
        let kept = &mut policy.retention;
        match self {
            Setting::Every(secs) => policy.every_secs = *secs,
            Setting::Continuous(secs) => policy.continuous_secs = *secs,
            Setting::Hourly(n) => kept.hourly = *n,
            Setting::Daily(n) => kept.daily = *n,
            Setting::Weekly(n) => kept.weekly = *n,
            Setting::Monthly(n) => kept.monthly = *n,
            Setting::Yearly(n) => kept.yearly = *n,
            Setting::HistoryMax(share) => policy.history_max = *share,
            Setting::FreeMin(share) => policy.free_min = *share,
            Setting::OnClose(globs) => policy.on_close.clone_from(globs),
            Setting::Immutable(secs) => policy.set_immutable(now, *secs)?,
            Setting::Webhook(address) => policy.webhook.clone_from(address),
            Setting::Exclude(globs) => policy.exclude.clone_from(globs),
        }
        Ok(())
    }

    /// A policy as settings, in the form that can be set again.
    pub fn of(policy: &Policy) -> Vec<(&'static str, String)> {
        let period = |secs: u64| if secs == 0 { "off".to_owned() } else { age_text(secs) };
        let kept = &policy.retention;
        let mut all = vec![
            ("every", period(policy.every_secs)),
            ("continuous", period(policy.continuous_secs)),
            ("hourly", kept.hourly.to_string()),
            ("daily", kept.daily.to_string()),
            ("weekly", kept.weekly.to_string()),
            ("monthly", kept.monthly.to_string()),
            ("yearly", kept.yearly.to_string()),
            ("history-max", share_text(policy.history_max)),
            ("free-min", share_text(policy.free_min)),
            ("immutable", period(policy.immutable_secs())),
        ];
        let webhook = if policy.webhook.is_empty() { "off" } else { &policy.webhook };
        all.push(("webhook", webhook.to_owned()));
        all.extend(policy.on_close.iter().map(|glob| ("on-close", glob.clone())));
        all.extend(policy.exclude.iter().map(|glob| ("exclude", glob.clone())));
        all
    }
}

/// Only what can be told from the text: an address that answers nothing is noticed when it is used.
fn check_address(text: &str) -> Result<(), String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = text.len() <= WEBHOOK_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
    match host.filter(|host| plain && host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')) {
        Some(_) => Ok(()),
        None => Err(format!(
            "it is an address that begins with https:// or http://, up to {WEBHOOK_BYTES_MAX} characters, or off"
        )),
    }
}

/// Every glob is a setting of its own on the command line; an empty value, or `off`, takes all away.
fn glob(value: &str) -> Result<Vec<String>, String> {
    let globs: Vec<String> =
        Some(value.to_owned()).filter(|v| !matches!(v.as_str(), "" | "off")).into_iter().collect();
    Globs::new(&globs)?;
    if value.len() > GLOB_BYTES_MAX {
        return Err(format!("a glob has up to {GLOB_BYTES_MAX} bytes"));
    }
    Ok(globs)
}

const UNITS: [(&str, u64); 4] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

fn share(text: &str) -> Option<Share> {
    if let Some(percent) = text.strip_suffix('%') {
        return percent.parse().ok().filter(|p| *p <= 100).map(Share::Percent);
    }
    let text = text.strip_suffix("iB").or_else(|| text.strip_suffix('B')).unwrap_or(text);
    let unit = UNITS.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| number.parse::<u64>().ok()?.checked_mul(unit)).flatten().map(Share::Bytes)
}

fn share_text(share: Share) -> String {
    match share {
        Share::Percent(percent) => format!("{percent}%"),
        Share::Bytes(bytes) => {
            let unit = UNITS.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
            unit.map_or(bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(texts: &[&str]) -> Policy {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let mut policy = Policy::default();
        for setting in Setting::all(&texts).unwrap() {
            setting.apply(&mut policy, Timestamp { secs: 1000, nanos: 0 }).unwrap();
        }
        policy
    }

    #[test]
    fn what_is_shown_can_be_set() {
        let set = [
            "every=15m",
            "continuous=36h",
            "hourly=1",
            "daily=2",
            "weekly=3",
            "monthly=4",
            "yearly=5",
            "history-max=500G",
            "free-min=7%",
            "immutable=7d",
            "on-close=a/*.pt",
            "on-close={b,c}/**",
            "webhook=https://hooks.example/x?y=z",
            "exclude=scratch/**",
            "exclude=**/*.tmp",
        ];
        let policy = policy(&set);
        let shown: Vec<String> = Setting::of(&policy).iter().map(|(k, v)| format!("{k}={v}")).collect();
        let (mut shown, mut set) = (shown, set.map(str::to_owned).to_vec());
        shown.sort();
        set.sort();
        assert_eq!(shown, set);
        assert_eq!(policy.every_secs, 900);
        assert_eq!(policy.on_close, ["a/*.pt", "{b,c}/**"]);
    }

    #[test]
    fn lists_are_replaced_and_can_be_emptied() {
        assert_eq!(policy(&["on-close=x", "every=off"]).every_secs, 0);
        assert!(policy(&["on-close="]).on_close.is_empty());
        assert!(policy(&["exclude=off", "on-close=off"]).exclude.is_empty());
        assert_eq!(policy(&["exclude=a", "exclude=b"]).exclude, ["a", "b"]);
    }

    #[test]
    fn refusals_name_the_setting() {
        for text in [
            "every",
            "every=",
            "every=5",
            "every=1.5h",
            "every=200000d",
            "hourly=-1",
            "hourly=x",
            "hourly=100001",
            "history-max=101%",
            "history-max=5X",
            "history-max=%",
            "free-min=99999999999T",
            "on-close=/a",
            "on-close={",
            "webhook=example.com",
            "webhook=https://",
            "webhook=http://a b",
            "exclude=/x",
            "excluded=x",
            "=",
            "immutable=7",
        ] {
            let error = Setting::all(&[text.to_owned()]).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{text}: {error}");
        }
        assert!(Setting::all(&["daily=1".into(), "daily=2".into()]).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(key in "(every|daily|free-min|on-close|exclude|immutable|x)", value in "\\PC{0,12}") {
            let _ = Setting::all(&[format!("{key}={value}")]);
        }
    }
}
