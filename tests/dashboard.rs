//! The dashboard as people see it, in Chromium: it loads, follows what happens, says what is wrong, and its buttons do
//! what they say. `ANECHOIC_SCREENSHOTS=DIR` keeps pictures of it.

use std::time::Duration;

use serde_json::json;

use super::support::agent::{http_request, write_secret};
use super::support::browser::{Browser, DESK, PHONE};
use super::support::quarantine::until_held;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
const TOKEN: &str = "correct horse";
const SECRET: &str = "planted-value";

/// Contacts whose conflicts wait for a person, and of which the shop wants no e-mail twice.
async fn start() -> World {
    let contact = Entity::new("contact")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("email", Type::Varchar(60))
        .option("conflict = \"manual\"");
    let order = Entity::new("order").key("id", Type::Int).field("total", Type::Decimal(12, 2));
    let mut world = World::of(&SYSTEMS)
        .proxied("shop")
        .entity(contact)
        .entity(order)
        .ddl("shop", "ALTER TABLE contact ADD CONSTRAINT one_email UNIQUE (email)")
        .build()
        .await;
    let token = world.agent.dir.path().join("token");
    write_secret(&token, &format!("{TOKEN}\n"));
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let config = config.replacen("[agent]\n", &format!("[agent]\ntoken_file = {token:?}\n"), 1);
    std::fs::write(world.agent.config(), config).unwrap();
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    world
}

async fn until_row(world: &World, system: &str, row: [&str; 3]) {
    eventually(SOON, || async {
        let rows = world.rows("contact", system).await;
        let is = |is: &Vec<Option<String>>| is.iter().map(|value| value.as_deref().unwrap_or("NULL")).eq(row);
        if rows.iter().any(is) { Ok(()) } else { Err(format!("{system} has no {row:?}: {rows:?}")) }
    })
    .await;
}

async fn open(world: &World) -> Browser {
    let mut browser = Browser::start().await;
    browser.open(&format!("http://127.0.0.1:{}/", world.agent.port)).await;
    browser
}

/// What the cell of a column says in the row of a record.
fn cell(record: &str, column: usize) -> String {
    format!(
        "[...document.querySelectorAll('#records tbody th')].find(th => th.textContent === {record:?})\
         ?.parentNode.children[{column}].textContent"
    )
}

/// What people see, as they may see it: by day, by night, and on a phone.
async fn look(browser: &mut Browser, state: &str) {
    for (scheme, size, device) in
        [("light", DESK, "desk"), ("dark", DESK, "desk-dark"), ("light", PHONE, "phone"), ("dark", PHONE, "phone-dark")]
    {
        browser.size(size).await;
        browser.scheme(scheme).await;
        tokio::time::sleep(Duration::from_millis(100)).await; // a picture of what is laid out anew
        assert!(!browser.scrolls_sideways().await, "{state}, {device}");
        browser.screenshot(&format!("{state}-{device}")).await;
    }
    browser.size(DESK).await;
    let nameless = browser.nameless().await;
    assert!(nameless.is_empty(), "{state}: {nameless:?}");
}

const VERDICT: &str = "document.getElementById('verdict').textContent";
const SHOWN: &str = "document.body.innerText";

#[tokio::test]
async fn it_loads_by_itself_and_follows_what_happens() {
    let mut world = start().await;
    let mut browser = open(&world).await;
    browser.until(&format!("{VERDICT} === 'in step'")).await;

    world["crm"].execute("INSERT INTO contact VALUES (1, 'Ada', 'ada@x'), (2, 'Grace', 'grace@x')").await;
    world["erp"].execute("INSERT INTO `order` VALUES (7, 12.50)").await;
    browser.until(&format!("{} === '2' && {} === '4'", cell("contact", 1), cell("contact", 2))).await;
    browser.until(&format!("{} === '1' && {} === '2'", cell("order", 1), cell("order", 2))).await;
    browser.press("hour").await;
    browser.until("document.querySelector('[data-window=hour]').ariaPressed === 'true'").await;
    assert_eq!(browser.value(&cell("contact", 1)).await, json!("2"));

    look(&mut browser, "rest").await;

    // A button that does what it says, first of all ask for the token.
    browser.press("Pause shop").await;
    browser.until("document.getElementById('ask').open").await;
    browser.type_text(TOKEN).await;
    browser.press("Unlock").await;
    browser.until(&format!("{VERDICT} === 'shop paused'")).await;
    world["crm"].execute("INSERT INTO contact VALUES (3, 'Edsger', 'edsger@x')").await;
    browser.until(&format!("{SHOWN}.includes('1 entry, ')")).await;
    browser.press("Resume shop").await;
    browser.until(&format!("{VERDICT} === 'in step' && {} === '6'", cell("contact", 2))).await;
    browser.press("Refresh contact").await;
    browser.until("document.getElementById('ask').open").await;
    browser.press("Refresh").await;
    browser.until(&format!("{SHOWN}.includes('contact is being read')")).await;

    // Gone, and back: the page says so, and goes on by itself.
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    let own = format!("http://127.0.0.1:{}/", world.agent.port);
    let outside = browser.requested.iter().filter(|url| !url.starts_with(&own) && !url.starts_with("data:"));
    assert_eq!(outside.count(), 0, "{:?}", browser.requested);
    world.agent.kill();
    browser.until(&format!("{VERDICT} === 'connection lost'")).await;
    world.agent.start();
    browser.until(&format!("{VERDICT} === 'in step'")).await;
}

/// Two systems write all the time; then one of them is away, and what the others write waits for it.
#[tokio::test]
async fn what_flows_is_seen_to_flow_and_a_system_that_is_away_is_named_with_its_error() {
    let world = start().await;
    let mut browser = open(&world).await;
    browser.until(&format!("{VERDICT} === 'in step'")).await;
    let trouble = "!document.getElementById('trouble').hidden";

    let writing = async {
        for first in (1000..).step_by(50) {
            let rows: Vec<String> = (first..first + 50).map(|id| format!("({id}, 1)")).collect();
            let numbers = format!("generate_series({first}, {first} + 49) AS s(n)");
            world["crm"].execute(&format!("INSERT INTO contact SELECT n, 'Ada', NULL FROM {numbers}")).await;
            world["erp"].execute(&format!("INSERT INTO `order` VALUES {}", rows.join(", "))).await;
        }
    };
    let looking = async {
        let flows = |system: usize, lane: &str| {
            format!(
                "document.querySelectorAll('.lanes')[{system}].querySelector('.{lane}').classList.contains('flows')"
            )
        };
        let all = [flows(0, "from"), flows(0, "to"), flows(1, "to"), flows(2, "from"), flows(2, "to")].join(" && ");
        browser.until(&format!("{all} && !({})", flows(1, "from"))).await;
        let rate = "document.querySelectorAll('.lanes')[1].querySelector('.to b').textContent";
        browser.until(&format!("/^[1-9][0-9,.]*\\/s$/.test({rate})")).await;
        tokio::time::sleep(Duration::from_secs(8)).await; // a curve, not a point
        look(&mut browser, "load").await;
        assert_eq!(browser.value(trouble).await, json!(false));

        world.proxy("shop").refuse();
        browser.until(&format!("{trouble} && {SHOWN}.includes('shop is trying again')")).await;
        browser.until(&format!("{VERDICT} === 'shop trying again' && /[0-9]+ entries, .* late/.test({SHOWN})")).await;
        let named = "document.querySelector('#trouble span').textContent";
        assert!(!browser.value(named).await.as_str().unwrap().is_empty(), "nobody says why");
        // One that is away does not hold up the others.
        browser.until(&flows(2, "to")).await;
        look(&mut browser, "down").await;
    };
    tokio::select! {
        () = writing => unreachable!(),
        () = looking => {}
    }

    world.proxy("shop").pass();
    browser.until(&format!("{VERDICT} === 'in step' && !({trouble})")).await;
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[tokio::test]
async fn what_waits_for_a_person_is_shown_without_values_and_decided_with_the_token() {
    let world = start().await;
    world["crm"].execute(&format!("INSERT INTO contact VALUES (1, 'Ada', '{SECRET}'), (2, 'Grace', 'grace@x')")).await;
    world.quiet().await;
    let mut browser = open(&world).await;
    browser.until(&format!("{VERDICT} === 'in step'")).await;

    // Held by the shop, which has that e-mail; and two names for contact 1.
    world["erp"].execute(&format!("INSERT INTO contact VALUES (3, 'thief', '{SECRET}')")).await;
    until_held(&world, 1).await;
    world.proxy("shop").stall();
    world["shop"].execute("UPDATE contact SET name = 'of shop' WHERE id = 1").await;
    let head = world.agent.status().await.unwrap()["journal"]["head"].as_u64();
    world["crm"].execute("UPDATE contact SET name = 'of crm' WHERE id = 1").await;
    let journaled = |status: &serde_json::Value| match status["journal"]["head"].as_u64() > head {
        true => Ok(()),
        false => Err("not journaled".into()),
    };
    world.agent.until(Duration::from_secs(20), journaled).await;
    world.proxy("shop").pass();
    browser.until(&format!("{SHOWN}.includes('contact 3') && {SHOWN}.includes('one_email')")).await;
    browser.until(&format!("{SHOWN}.includes('waits for a decision')")).await;
    let shown = browser.value("document.documentElement.outerHTML").await;
    assert!(!shown.as_str().unwrap().contains(SECRET) && !shown.as_str().unwrap().contains("of shop"));

    // A wrong token opens nothing.
    browser.press("Values of contact 3").await;
    browser.until("document.getElementById('ask').open").await;
    assert_eq!(browser.nameless().await, Vec::<String>::new());
    browser.type_text("guess").await;
    browser.press("Unlock").await;
    browser.until(&format!("{SHOWN}.includes('the token is missing or wrong')")).await;
    browser.complaints.clear(); // the browser notes each refusal itself
    browser.press("Values of contact 3").await;
    browser.until("document.getElementById('ask').open").await;
    browser.type_text(TOKEN).await;
    browser.press("Unlock").await;
    browser.until(&format!("{SHOWN}.includes('email: {SECRET}')")).await;

    // Tried again while the e-mail is still taken, then given up.
    browser.press("Retry contact 3").await;
    browser.until(&format!("{SHOWN}.includes('tried again')")).await;
    let open: serde_json::Value =
        serde_json::from_str(&world.agent.run(&["conflicts", "list", "--open", "--json"]).await).unwrap();
    browser.press(&format!("Values of conflict {}", open[0]["id"].as_str().unwrap())).await;
    browser.until(&format!("{SHOWN}.includes('→ of shop') && {SHOWN}.includes('→ of crm')")).await;
    look(&mut browser, "conflicts").await;
    browser.press("Take shop's version of contact 1").await;
    browser.until("document.getElementById('ask').open").await;
    browser.press("Take shop").await;
    until_row(&world, "erp", ["1", "of shop", SECRET]).await;
    browser.until(&format!("!{SHOWN}.includes('waits for a decision')")).await;
    browser.press("Drop contact 3").await;
    browser.until("document.getElementById('ask').open").await;
    browser.press("Drop").await;
    until_held(&world, 0).await;
    browser.until(&format!("!{SHOWN}.includes('contact 3')")).await;
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

/// The port by itself: what it tells everybody, and what it asks the token for.
#[tokio::test]
async fn the_port_gives_values_and_takes_orders_with_the_token_alone() {
    let world = start().await;
    let port = world.agent.port;
    let right = format!("Bearer {TOKEN}");
    world["crm"].execute(&format!("INSERT INTO contact VALUES (1, 'Ada', '{SECRET}'), (9, 'Noor', 'noor@x')")).await;
    world["erp"].execute("INSERT INTO contact VALUES (2, 'Grace', 'grace@x')").await;
    world.quiet().await;
    world["erp"].execute(&format!("UPDATE contact SET email = '{SECRET}' WHERE id = 2")).await;
    until_held(&world, 1).await;

    let (code, listed) = http_request(port, "GET", "/quarantine", None, "").await.unwrap();
    assert!(code == 200 && listed.contains("one_email") && !listed.contains(SECRET), "{code} {listed}");
    for (method, path, body) in [
        ("GET", "/quarantine?values=true", ""),
        ("GET", "/conflicts/1.0", ""),
        ("POST", "/conflicts/1.0/resolve", r#"{"take":"crm"}"#),
        ("POST", "/quarantine/retry", ""),
        ("POST", "/quarantine/drop", r#"{"key":"2"}"#),
        ("POST", "/systems/shop/pause", ""),
        ("POST", "/systems/shop/resume", ""),
        ("POST", "/entities/contact/load", ""),
        ("POST", "/reload", ""),
    ] {
        for wrong in [None, Some("Bearer guess"), Some(TOKEN)] {
            let (code, said) = http_request(port, method, path, wrong, body).await.unwrap();
            assert!(code == 401 && said.contains("token") && !said.contains(SECRET), "{path} {wrong:?}: {code} {said}");
        }
    }
    let (code, values) = http_request(port, "GET", "/quarantine?values=true", Some(&right), "").await.unwrap();
    assert!(code == 200 && values.contains(SECRET), "{code} {values}");

    let ask = |path: &'static str, body: &'static str| http_request(port, "POST", path, Some(&right), body);
    let (code, said) = ask("/entities/nothing/load", "").await.unwrap();
    assert!(code == 409 && said.contains("nothing"), "{code} {said}");
    let (code, said) = ask("/entities/contact/load", r#"{"from":"crm","whole":1}"#).await.unwrap();
    assert!(code == 400 && said.contains("whole"), "{code} {said}");
    let (code, said) = ask("/conflicts/77.0/resolve", r#"{"take":"crm"}"#).await.unwrap();
    assert!(code == 409 && said.contains("77.0"), "{code} {said}");
    let (code, said) = ask("/systems/warehouse/pause", "").await.unwrap();
    assert!(code == 409 && said.contains("warehouse"), "{code} {said}");
    let (code, said) = ask("/quarantine/drop", "").await.unwrap();
    assert!(code == 400 && said.contains("not named"), "{code} {said}");
    assert_eq!(ask("/reload", "").await.unwrap().0, 200);
    world.agent.until(SOON, |status| if status["state"] == "running" { Ok(()) } else { Err(status.to_string()) }).await;
    // Deleted behind the agent's back: a refresh brings it again.
    let mut behind = world["shop"].admin().await;
    behind.execute("SET sql_log_bin = 0").await;
    behind.execute("DELETE FROM contact WHERE id = 9").await;
    // The first load may still be under way.
    eventually(SOON, || async {
        let (code, said) = ask("/entities/contact/load", "").await?;
        if code == 202 { Ok(()) } else { Err(said) }
    })
    .await;
    until_row(&world, "shop", ["9", "Noor", "noor@x"]).await;

    // Without a token file nothing is given and nothing is taken.
    let plain = World::of(&SYSTEMS[..2]).entity(Entity::new("contact").key("id", Type::Int)).start().await;
    let (code, said) =
        http_request(plain.agent.port, "POST", "/entities/contact/load", Some(&right), "").await.unwrap();
    assert!(code == 403 && said.contains("token_file"), "{code} {said}");
}
