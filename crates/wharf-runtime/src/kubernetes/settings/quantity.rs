//! Kubernetes' quantities: `2Gi`, `500m`, `1e3`.
//!
//! The grammar is that of <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.

use std::cmp::Ordering;

const LONGEST: usize = 64;
/// What Kubernetes holds at most; it silently lowers more to this.
const GREATEST: u128 = i64::MAX as u128;
const NANOS: u128 = 1_000_000_000;

/// An amount, exact to a thousand-millionth; what is finer is rounded up, as Kubernetes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quantity {
    nanos: u128,
}

impl Quantity {
    /// # Errors
    ///
    /// The reason for which the text is no quantity, or none that is above zero.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "a quantity such as `500m`, `2` or `1.5Gi` is expected";
        if text.len() > LONGEST {
            return Err("a quantity has at most 64 characters");
        }
        let unsigned = match text.split_at_checked(1) {
            Some(("-", _)) => return Err("it must be above zero"),
            Some(("+", rest)) => rest,
            _ => text,
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(SHAPE);
        }
        let unit = Unit::parse(suffix).ok_or_else(|| hint(suffix).unwrap_or(SHAPE))?;
        // More digits than 128 bits hold are no amount of anything.
        let digits = [whole, fraction].concat();
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() {
            return Err("it must be above zero");
        }
        let mantissa: u128 = significant.parse().map_err(|_| "it has too many digits")?;
        let nanos = unit.nanos(mantissa, fraction.len()).ok_or("it is more than Kubernetes can hold")?;
        if nanos / NANOS > GREATEST { Err("it is more than Kubernetes can hold") } else { Ok(Self { nanos }) }
    }

    pub(super) fn is_whole(self) -> bool {
        self.nanos.is_multiple_of(NANOS)
    }

    /// Whether it is a whole number of thousandths: Kubernetes divides a CPU no further.
    pub(super) fn is_whole_thousandths(self) -> bool {
        self.nanos.is_multiple_of(NANOS / 1000)
    }
}

/// What `text` is to `other`, if both are quantities.
pub(super) fn compare(text: &str, other: &str) -> Option<Ordering> {
    Some(Quantity::parse(text).ok()?.cmp(&Quantity::parse(other).ok()?))
}

/// Whole bytes that are at least both together, if both are quantities.
pub(in crate::kubernetes) fn sum(text: &str, other: &str) -> Option<String> {
    let nanos = Quantity::parse(text).ok()?.nanos + Quantity::parse(other).ok()?.nanos;
    Some(nanos.div_ceil(NANOS).to_string())
}

#[derive(Clone, Copy)]
enum Unit {
    Decimal { exponent: i32 },
    Binary { bits: u32 },
}

impl Unit {
    fn parse(suffix: &str) -> Option<Self> {
        let exponent = match suffix {
            "n" => -9,
            "u" => -6,
            "m" => -3,
            "" => 0,
            "k" => 3,
            "M" => 6,
            "G" => 9,
            "T" => 12,
            "P" => 15,
            "E" => 18,
            _ => match suffix.strip_suffix('i') {
                Some(binary) => {
                    let power = ["K", "M", "G", "T", "P", "E"].iter().position(|unit| *unit == binary)?;
                    return Some(Self::Binary { bits: 10 * (u32::try_from(power).ok()? + 1) });
                }
                None => suffix.strip_prefix(['e', 'E'])?.parse().ok()?,
            },
        };
        Some(Self::Decimal { exponent })
    }

    /// `mantissa`, whose last `fraction_digits` are behind the point, in this unit. `None` if it is beyond 128 bits.
    fn nanos(self, mantissa: u128, fraction_digits: usize) -> Option<u128> {
        let behind = i32::try_from(fraction_digits).ok()?;
        let (factor, exponent) = match self {
            Self::Decimal { exponent } => (1, exponent),
            Self::Binary { bits } => (1_u128 << bits, 0),
        };
        let power = exponent.checked_add(9)?.checked_sub(behind)?;
        let scaled = mantissa.checked_mul(factor)?;
        if power >= 0 {
            return scaled.checked_mul(10_u128.checked_pow(power.unsigned_abs())?);
        }
        // A divisor beyond 128 bits leaves a trace that is rounded up.
        Some(10_u128.checked_pow(power.unsigned_abs()).map_or(1, |divisor| scaled.div_ceil(divisor)))
    }
}

/// What people write instead of the suffix that Kubernetes takes.
fn hint(suffix: &str) -> Option<&'static str> {
    match suffix.trim_start().to_ascii_lowercase().as_str() {
        "k" | "kb" | "ki" | "kib" => Some("the suffix must be `Ki` (or `k` for thousands)"),
        "mb" | "mib" | "mi" => Some("the suffix must be `Mi` (or `M` for millions)"),
        "gb" | "gib" | "gi" | "g" => Some("the suffix must be `Gi` (or `G` for thousands of millions)"),
        "tb" | "tib" | "ti" | "t" => Some("the suffix must be `Ti` (or `T` for millions of millions)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, nanos: u128) {
        assert_eq!(Quantity::parse(text), Ok(Quantity { nanos }), "{text}");
    }

    #[track_caller]
    fn check_refused(text: &str, reason: &str) {
        let refused = Quantity::parse(text).unwrap_err();
        assert!(refused.contains(reason), "{text}: {refused}");
    }

    #[test]
    fn every_suffix_of_kubernetes_is_understood() {
        let decimal = [("n", 0), ("u", 3), ("m", 6), ("", 9), ("k", 12), ("M", 15), ("G", 18), ("T", 21), ("P", 24)];
        for (suffix, power) in decimal {
            check(&format!("3{suffix}"), 3 * 10_u128.pow(power));
        }
        for (power, suffix) in (1..).zip(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]) {
            check(&format!("2{suffix}"), 2 * 1024_u128.pow(power) * NANOS);
        }
        check("1E", 10_u128.pow(27));
        check("1E3", 1000 * NANOS);
        check("12e-3", 12_000_000);
        check("+1.5Gi", 1_610_612_736 * NANOS);
        check(".5", 500_000_000);
        check("5.", 5 * NANOS);
    }

    #[test]
    fn what_is_finer_than_kubernetes_holds_is_rounded_up() {
        check("0.1n", 1);
        check("1e-300", 1);
        check("0.0000000011", 2);
    }

    #[test]
    fn an_amount_must_be_above_zero() {
        for text in ["0", "0Gi", "0.000", "-1", "-1Gi"] {
            check_refused(text, "above zero");
        }
    }

    #[test]
    fn what_kubernetes_does_not_take_is_refused() {
        for text in ["", "Gi", ".", "1.2.3", "1 ", "1_000", "0x10", "１", "1e", "1e1.5", "two", "1Gi ", "1ee3", "+-1"]
        {
            check_refused(text, "is expected");
        }
        check_refused("2GB", "`Gi`");
        check_refused("1K", "`Ki`");
        check_refused("1 Gi", "`Gi`");
        check_refused("512mb", "`Mi`");
    }

    #[test]
    fn an_amount_beyond_64_bits_is_refused() {
        for text in ["9223372036854775808", "16Ei", "1e19", "1e2147483647", "999999999999999999999999999999999999Ei"] {
            check_refused(text, "more than Kubernetes can hold");
        }
        check_refused(&"9".repeat(60), "too many digits");
        check_refused(&"9".repeat(65), "at most 64");
        check("9223372036854775807", u128::from(i64::MAX.unsigned_abs()) * NANOS);
    }

    #[test]
    fn quantities_of_different_units_add_up() {
        assert_eq!(sum("1Ki", "1k").as_deref(), Some("2024"));
        assert_eq!(sum("1500m", "1").as_deref(), Some("3"));
        assert_eq!(sum("much", "1"), None);
    }

    #[test]
    fn quantities_of_different_units_compare() {
        assert_eq!(compare("1024Mi", "1Gi"), Some(Ordering::Equal));
        assert_eq!(compare("1G", "1Gi"), Some(Ordering::Less));
        assert_eq!(compare("1500m", "1"), Some(Ordering::Greater));
        assert_eq!(compare("1500m", "one"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.+\\-eEimnkKMGTPué ]{0,70}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn milli_amounts_compare_as_numbers(a in 1_u64..1_000_000, b in 1_u64..1_000_000) {
            prop_assert_eq!(compare(&format!("{a}m"), &format!("{}e-3", b)), Some(a.cmp(&b)));
        }
    }
}
