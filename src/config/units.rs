//! Durations (`30s`, `5m`, `2h`, `30d`), sizes (`64KiB`, `1GiB`) and rates (`2000 rows/s`, `2000`)
//! as the file spells them.

use std::time::Duration;

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text.trim())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text.trim())?;
    let power = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << power)
}

/// Rows per second; none is no rate.
pub fn rate(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.strip_suffix("rows/s").map_or(text, str::trim_end);
    number.parse().ok().filter(|rate| *rate > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Some(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(duration("30d"), Some(Duration::from_secs(30 * 86_400)));
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("1GiB"), Some(1 << 30));
        assert_eq!((rate("2000 rows/s"), rate("50rows/s"), rate("7")), (Some(2000), Some(50), Some(7)));
        for text in ["", "0", "rows/s", "-1", "2000 rows", "2k"] {
            assert_eq!(rate(text), None, "{text}");
        }
        for text in ["", "30", "s", "-1s", "1.5h", "30 days", "999999999999999999d"] {
            assert_eq!(duration(text), None, "{text}");
        }
        for text in ["", "64", "64KB", "64k", "99999999999TiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
