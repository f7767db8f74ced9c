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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What is said of a token file that holds `token`; `None`: it is not there.
    fn said(listen: &str, token: Option<&str>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        if let Some(token) = token {
            std::fs::write(&file, token).unwrap();
        }
        let text = format!(
            "[agent]\nid = \"hq\"\nlisten = {listen:?}\ninsecure = true\ntoken_file = {file:?}\n\
             [[system]]\nname = \"crm\"\nurl = \"mysql://u@h/d\"\n"
        );
        let findings = findings(&Config::from_str(&text, "x").unwrap());
        let name = |path: &Path| path.display().to_string();
        findings.iter().map(|finding| finding.to_string().replace(&name(&file), "TOKEN")).collect()
    }

    #[test]
    fn a_token_that_nobody_can_have_or_anybody_guess_is_named() {
        let (here, everywhere) = ("127.0.0.1:8642", "0.0.0.0:8642");
        let good = "0123456789abcdef\n";
        assert!(said(here, Some(good)).is_empty() && said(everywhere, Some(good)).is_empty());
        assert!(said(here, Some("short")).is_empty(), "only this machine can try it");

        let [short] = &said(everywhere, Some("short"))[..] else { panic!("nothing is said") };
        assert!(short.starts_with("warning: the token in TOKEN is short"), "{short}");
        for empty in ["", "\n", "  \n"] {
            let [said] = &said(here, Some(empty))[..] else { panic!("{empty:?}: nothing is said") };
            assert_eq!(said, "warning: the token file TOKEN is empty\n    openssl rand -hex 32 > TOKEN");
        }
        let [absent] = &said(here, None)[..] else { panic!("nothing is said") };
        assert!(absent.starts_with("warning: whoever needs the token of the port is refused: "), "{absent}");
    }
}
