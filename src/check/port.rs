//! The files that the port needs: the certificate, without which it does not open, and the token.

use crate::config::{Config, PasswordSource};
use crate::connect::password;
use crate::finding::Finding;
use crate::http::Certificate;
use crate::status::now;

/// A shorter one can be guessed.
const TOKEN_MIN: usize = 16;

pub fn findings(config: &Config) -> Vec<Finding> {
    let agent = &config.agent;
    let certificate = agent.tls.as_ref().map(Certificate::read);
    let certificate = certificate.and_then(|read| match read {
        Err(error) => Some(Finding::of("", &error)),
        Ok(certificate) => certificate.validity().and_then(|validity| validity.trouble(now())).map(|trouble| {
            let mend = "# when tls_cert and tls_key are replaced:\nsystemctl reload anechoic";
            Finding::warning("", trouble).mend(mend)
        }),
    });
    // It is read at each request, and until it can be, all that needs it is refused.
    let token = agent.token_file.as_ref().and_then(|file| {
        let name = file.display();
        let mend = format!("openssl rand -hex 32 > {name}");
        let token = match password(&PasswordSource::File(file.clone())) {
            Ok(token) => token.unwrap_or_default(),
            Err(error) => {
                let why = Finding::of("", &error);
                let what = format!("whoever needs the token of the port is refused: {}", why.what);
                return Some(Finding::warning("", what).mend(mend));
            }
        };
        match token.trim().chars().count() {
            0 => Some(Finding::warning("", format!("the token file {name} is empty")).mend(mend)),
            1..TOKEN_MIN if !agent.listen.ip().is_loopback() => {
                let what = format!(
                    "the token in {name} is short (under {TOKEN_MIN} characters), and other machines can try it"
                );
                Some(Finding::warning("", what).mend(mend))
            }
            _ => None,
        }
    });
    certificate.into_iter().chain(token).collect()
}
