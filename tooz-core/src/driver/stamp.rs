//! In which layout a backend's data stands (X7).

use std::cmp::Ordering;
use std::fmt;

use super::Epoch;
use crate::options::{OptionKind, OptionSpec};
use crate::{BackendUrl, Error, ErrorKind, Result};

/// What a namespace says about its data: the number of its layout, and which data it is.
///
/// A driver keeps it in one record, reads it in the step that opens a session, and compares it with the number that
/// it writes itself: a session in another layout must not begin. A layout gets a new number when versions before it
/// would not exclude, or not outdo the tokens of, those after it.
///
/// As text layout 1 is the [`Epoch`] alone; others are the number, a space and the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The layout's number, from 1 on.
    pub layout: u32,
    /// Which data it is. It stays when the layout changes.
    pub epoch: Epoch,
}

impl Stamp {
    /// Reads it as it is written; each stamp has one form.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let Some((number, epoch)) = text.split_once(' ') else {
            return Some(Self { layout: 1, epoch: Epoch::parse(text)? });
        };
        let stamp = Self { layout: number.parse().ok()?, epoch: Epoch::parse(epoch)? };
        (stamp.layout > 1 && stamp.to_string() == text).then_some(stamp)
    }

    /// Compares the layout of `place` with the one that the driver writes. `Less` is to be brought to the driver's once
    /// no session lives in it.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] if it is a later one.
    pub fn compare(self, place: &dyn fmt::Display, ours: u32) -> Result<Ordering> {
        let order = self.layout.cmp(&ours);
        if order == Ordering::Greater { Err(later_layout(place, self.layout, ours)) } else { Ok(order) }
    }

    /// For a view, which cannot change the layout.
    ///
    /// # Errors
    /// [`ErrorKind::Incompatible`] if it is another one.
    pub fn readable(self, place: &dyn fmt::Display, ours: u32) -> Result<()> {
        match self.compare(place, ours)? {
            Ordering::Less => Err(earlier_layout(place, self.layout, ours)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            1 => self.epoch.fmt(f),
            layout => write!(f, "{layout} {}", self.epoch),
        }
    }
}

fn incompatible(place: &dyn fmt::Display, found: u32, why: &str) -> Error {
    Error::new(ErrorKind::Incompatible, format!("{place} has layout {found}, {why}"))
}

/// The data is in a layout that this version does not know.
pub fn later_layout(place: &dyn fmt::Display, found: u32, ours: u32) -> Error {
    let why =
        format!("which a later version of tooz wrote; this program knows layouts up to {ours}, upgrade it");
    incompatible(place, found, &why)
}

/// The data is in an earlier layout, and is to be looked at alone.
pub fn earlier_layout(place: &dyn fmt::Display, found: u32, ours: u32) -> Error {
    let why = format!(
        "which an earlier version of tooz wrote; this one reads layout {ours}: view it with that version, or open a \
         session, which changes the layout"
    );
    incompatible(place, found, &why)
}

/// The data is in an earlier layout, in which `who` still lives.
pub fn earlier_layout_in_use(
    place: &dyn fmt::Display,
    found: u32,
    ours: u32,
    who: &dyn fmt::Display,
) -> Error {
    let why = format!(
        "and {who} uses it with an earlier version of tooz; end all programs of that version, then connect again, which \
         changes the data to layout {ours}"
    );
    incompatible(place, found, &why)
}

/// The option with which a test pretends to be of a later version.
pub const LAYOUT_OPTION: OptionSpec = OptionSpec::new(
    "layout",
    OptionKind::Integer { min: 1, max: 1_000_000 },
    "pretend to be a version whose layout has this number (default: that of this version)",
)
.for_tests();

/// The number that a driver writes: its own, unless the URL has a test pretend another.
///
/// # Errors
/// [`ErrorKind::InvalidOption`] if the option is no number.
pub fn layout_of(url: &BackendUrl, own: u32) -> Result<u32> {
    let pretended = url.integer(LAYOUT_OPTION.name())?;
    Ok(pretended.and_then(|number| u32::try_from(number).ok()).unwrap_or(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stamp_has_one_form() {
        let epoch = Epoch(7);
        for layout in [1, 2, 1_000] {
            let stamp = Stamp { layout, epoch };
            assert_eq!(Stamp::parse(stamp.to_string().as_bytes()), Some(stamp));
        }
        let bare = epoch.to_string();
        for text in [
            "",
            "2",
            "2 x",
            &format!("1 {bare}"),
            &format!("02 {bare}"),
            &format!("+2 {bare}"),
            &format!("2  {bare}"),
        ] {
            assert_eq!(Stamp::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn later_layouts_are_refused_by_name() {
        let stamp = Stamp { layout: 3, epoch: Epoch(7) };
        let error = stamp.compare(&"namespace \"x\"", 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("namespace \"x\" has layout 3"), "{error}");
        assert_eq!(stamp.compare(&"it", 3).unwrap(), Ordering::Equal);
        assert_eq!(stamp.compare(&"it", 4).unwrap(), Ordering::Less);
        stamp.readable(&"it", 3).unwrap();
        for ours in [2, 4] {
            assert_eq!(stamp.readable(&"it", ours).unwrap_err().kind(), ErrorKind::Incompatible);
        }
    }
}
