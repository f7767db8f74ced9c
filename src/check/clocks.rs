//! Clocks of servers that differ. Conflicts are found without clocks; but lag, the times in the
//! history, and policies that compare times are only as good as these.

use super::Survey;
use crate::config::{Config, EntityConfig};
use crate::connect::clock::Clock;
use crate::finding::Finding;

/// What nobody would notice, microseconds.
const TOLERATED: i64 = 1_000_000;

/// Against this machine's, and against the first system's that could be asked.
pub(super) fn findings(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let clocks: Vec<(&str, Clock)> = config
        .systems
        .iter()
        .zip(surveys)
        .filter_map(|(system, survey)| Some((&*system.name, survey.as_ref()?.clock?)))
        .collect();
    let by_commit_time = by_commit_time(config);
    judge(&clocks, &by_commit_time)
}

/// The entities whose conflicts the later commit wins.
pub(super) fn by_commit_time(config: &Config) -> Vec<&EntityConfig> {
    let decided = |entity: &&EntityConfig| {
        let writers = entity.bindings.iter().filter(|binding| binding.role.captures()).count();
        writers > 1 && entity.compares_commit_times()
    };
    config.entities.iter().filter(decided).collect()
}

/// `decided`: entities whose conflicts the later commit wins.
fn judge(clocks: &[(&str, Clock)], decided: &[&EntityConfig]) -> Vec<Finding> {
    let Some((first, reference)) = clocks.first() else { return vec![] };
    let mut findings = Vec::new();
    for (system, clock) in clocks {
        let mut said = Vec::new();
        let difference = clock.ahead - reference.ahead;
        if difference.abs() - clock.doubt - reference.doubt > TOLERATED {
            said.push(format!("{} that of {first}", apart(difference)));
        }
        if clock.ahead.abs() - clock.doubt > TOLERATED {
            said.push(format!("{} this machine's", apart(clock.ahead)));
        }
        if !said.is_empty() {
            let mut what =
                format!("its clock is {}: lag and times in the history are wrong by that", said.join(" and "));
            if !decided.is_empty() {
                let names: Vec<&str> = decided.iter().map(|entity| entity.name.as_str()).collect();
                what += &format!(", and which commit of {} is the latest is only as sure", names.join(", "));
            }
            let mend = "# on both machines: timedatectl set-ntp true";
            findings.push(Finding::warning(system, what).mend(mend));
        }
    }
    findings
}

/// MariaDB logs the second of a commit, so most of its conflicts would be ties.
pub(super) fn whole_seconds(config: &Config, surveys: &[Option<Survey>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entity in by_commit_time(config) {
        for binding in entity.bindings.iter().filter(|binding| binding.role.captures()) {
            if surveys[binding.system.index()].as_ref().is_none_or(|survey| survey.kind != "mariadb") {
                continue;
            }
            let what = "conflict = \"latest\" compares commit times, of which MariaDB logs whole seconds: within one, \
                        authority decides";
            let mend = format!(
                "[[entity]]\nname = {:?}\nconflict = \"latest\"\nlatest_by = \"…\"\n\
                 # a field that every write sets, such as updated_at",
                entity.name
            );
            let finding = Finding::warning(&config.system(binding.system).name, what);
            findings.push(finding.entity(&entity.name).table(&binding.table).mend(mend));
        }
    }
    findings
}

fn apart(micros: i64) -> String {
    let seconds = micros.abs() as f64 / 1e6;
    format!("{seconds:.1} s {}", if micros < 0 { "behind" } else { "ahead of" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_surely_apart_is_said() {
        let clock = |ahead, doubt| Clock { ahead, doubt };
        let judged = |shop| judge(&[("crm", clock(0, 500)), ("shop", shop)], &[]);

        assert_eq!(judged(clock(900_000, 500)), []);
        assert_eq!(judged(clock(1_200_000, 500_000)), [], "a slow answer may have been given late");
        insta::assert_snapshot!(judged(clock(-3_250_000, 500))[0], @r"
        warning: shop: its clock is 3.2 s behind that of crm and 3.2 s behind this machine's: lag and times in the history are wrong by that
            # on both machines: timedatectl set-ntp true
        ");
    }

    const LATEST: &str = r#"
        [agent]
        id = "hq"
        [[system]]
        name = "crm"
        url = "postgresql://hq@localhost/crm"
        [[system]]
        name = "shop"
        url = "mysql://hq@localhost/shop"
        [[entity]]
        name = "contact"
        key = ["id"]
        conflict = "latest"
        [entity.in.crm]
        table = "contacts"
        [entity.in.shop]
        table = "customers"
    "#;

    #[test]
    fn what_commit_times_decide_is_named_and_mariadb_has_whole_seconds() {
        let told = |file: &str, kind: &'static str| {
            let config = Config::from_str(file, "t").unwrap();
            let survey =
                |kind, ahead| Some(Survey { kind, clock: Some(Clock { ahead, doubt: 1 }), ..Survey::default() });
            let surveys = [survey("postgresql", 0), survey(kind, 2_000_000)];
            let mut findings = findings(&config, &surveys);
            findings.extend(whole_seconds(&config, &surveys));
            findings.iter().map(|finding| format!("{finding}\n")).collect::<String>()
        };
        let by_field = LATEST.replace("\"latest\"", "\"latest\"\nlatest_by = \"updated\"");
        let one_writer = LATEST.replace("\"customers\"", "\"customers\"\nrole = \"target\"");

        insta::assert_snapshot!(told(LATEST, "mariadb"), @r#"
        warning: shop: its clock is 2.0 s ahead of that of crm and 2.0 s ahead of this machine's: lag and times in the history are wrong by that, and which commit of contact is the latest is only as sure
            # on both machines: timedatectl set-ntp true
        warning: shop: contact (shop.customers): conflict = "latest" compares commit times, of which MariaDB logs whole seconds: within one, authority decides
            [[entity]]
            name = "contact"
            conflict = "latest"
            latest_by = "…"
            # a field that every write sets, such as updated_at
        "#);
        assert!(!told(LATEST, "mysql").contains("whole seconds"));
        for file in [by_field, one_writer] {
            let said = told(&file, "mariadb");
            assert!(!said.contains("whole seconds") && !said.contains("contact"), "{said}");
        }
    }
}
