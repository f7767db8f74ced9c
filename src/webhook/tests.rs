use super::*;

/// The example of the Standard Webhooks specification.
#[test]
fn requests_are_signed_as_the_specification_has_it() {
    let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();

    let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);

    assert_eq!(signed.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn a_secret_that_cannot_be_one_is_named_without_being_told() {
    let broken = key("whsec_planted!").unwrap_err();

    assert!(!broken.full().contains("planted"), "{}", broken.full());
    assert!(signature(&key("").unwrap(), "id", 0, b"").is_err());
    assert_eq!(key("a secret of one's own").unwrap(), b"a secret of one's own");
}

#[test]
fn what_is_refused_again_and_again_is_tried_once_a_minute() {
    let refused = Failure { refused: true, ..Failure::from(Error::retry("no")) };

    let away = Failure::from(Error::retry("away"));
    let mut patience = Patience::default();
    for _ in 0..100 {
        patience.pause(&away, 1.0);
    }

    assert_eq!(patience.pause(&away, 1.0), Duration::from_secs(5));
    let pauses: Vec<Duration> = (0..=REFUSED_SOON).map(|_| patience.pause(&refused, 1.0)).collect();
    assert_eq!(pauses[0], Duration::from_millis(200), "who answers after a long time gets another chance at once");
    assert_eq!(pauses[REFUSED_SOON as usize], Duration::from_secs(60));
    assert_eq!(patience.pause(&away, 1.0), Duration::from_secs(5));
}
