//! When the port's certificate is valid: told to people before it ends, because then nobody gets in.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::change::Micros;
use crate::http::status::timestamp;
use crate::value::MICROS_PER_DAY;

/// From then on it is told. Who renews by machine does so a month ahead.
const SOON: Micros = 14 * MICROS_PER_DAY;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from: Micros,
    pub until: Micros,
}

impl Validity {
    /// `None`: it is none that we can read. Whether it can be used is not for us to say.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let micros = |seconds: i64| seconds.saturating_mul(1_000_000);
        Some(Validity { from: micros(validity.not_before.timestamp()), until: micros(validity.not_after.timestamp()) })
    }

    /// One sentence.
    pub fn trouble(&self, now: Micros) -> Option<String> {
        let Validity { from, until } = *self;
        let at = |moment| timestamp(moment).map_or_else(String::new, |text| format!(" ({text})"));
        let what = match () {
            () if until < now => format!("has expired{}: who checks it does not connect", at(until)),
            () if from > now => format!("is not valid yet{}: who checks it does not connect", at(from)),
            () if until - now < SOON => match (until - now) / MICROS_PER_DAY {
                1 => format!("expires in 1 day{}", at(until)),
                days => format!("expires in {days} days{}", at(until)),
            },
            () => return None,
        };
        Some(format!("the port's certificate {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_to_come_or_nearly_over_is_told() {
        let day = MICROS_PER_DAY;
        let validity = Validity { from: 100 * day, until: 200 * day };
        let said = |now: Micros| {
            let said = validity.trouble(now)?;
            Some(said.strip_prefix("the port's certificate ").unwrap().to_owned())
        };
        let told = |text: &str| Some(text.to_owned());

        assert_eq!(
            said(100 * day - 1),
            told("is not valid yet (1970-04-11T00:00:00.000000Z): who checks it does not connect")
        );
        assert_eq!(said(100 * day), None);
        assert_eq!(said(186 * day), None);
        assert_eq!(said(186 * day + 1), told("expires in 13 days (1970-07-20T00:00:00.000000Z)"));
        assert_eq!(said(198 * day + 1), told("expires in 1 day (1970-07-20T00:00:00.000000Z)"));
        assert_eq!(said(200 * day), told("expires in 0 days (1970-07-20T00:00:00.000000Z)"));
        assert_eq!(
            said(200 * day + 1),
            told("has expired (1970-07-20T00:00:00.000000Z): who checks it does not connect")
        );
    }

    #[test]
    fn a_certificate_says_so_itself() {
        let mut params = rcgen::CertificateParams::new(vec!["agent.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();

        let validity = Validity::of(certificate.der()).unwrap();

        assert_eq!(timestamp(validity.from).unwrap(), "2020-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(validity.until).unwrap(), "2030-01-01T00:00:00.000000Z");
        assert_eq!(Validity::of(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
