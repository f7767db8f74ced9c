//! How much one address may ask of the port: so many connections at once, so many requests and so
//! many wrong tokens a second. What goes beyond is refused before anything is done for it.
//!
//! Whoever comes through a proxy counts as the proxy: what a request says of where it comes from,
//! anybody can write.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_OF_ONE_MAX: usize = 128;
/// Addresses that are remembered; those beyond share one account.
const ADDRESSES_MAX: usize = 4096;
/// Looking for what may be forgotten is for one request a second, not for each.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// A TLS handshake is as much work as so many requests.
const HANDSHAKE: f64 = 10.0;

/// So many a second, and so many at once after some time without.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub per_second: f64,
    pub burst: f64,
}

/// Far above what dashboards and scrapes need.
const REQUESTS: Rate = Rate { per_second: 500.0, burst: 1000.0 };
const WRONG_TOKENS: Rate = Rate { per_second: 2.0, burst: 20.0 };

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Bucket { left: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        *self = Bucket { left: (self.left + passed * rate.per_second).min(rate.burst), at: now.max(self.at) };
    }

    /// Whether there was as much left, and now is not any more.
    fn take(&mut self, amount: f64) -> bool {
        let enough = self.left >= amount;
        if enough {
            self.left -= amount;
        }
        enough
    }
}

#[derive(Debug)]
struct Account {
    connections: usize,
    requests: Bucket,
    wrong_tokens: Bucket,
}

#[derive(Debug)]
struct Accounts {
    by_address: HashMap<IpAddr, Account>,
    /// Of those for whom there is no room.
    rest: Account,
    connections: usize,
    forgot: Instant,
}

#[derive(Debug)]
pub struct Limits {
    requests: Rate,
    wrong_tokens: Rate,
    accounts: Mutex<Accounts>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(REQUESTS, WRONG_TOKENS)
    }
}

/// What became of a token that somebody sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    Right,
    Wrong,
    /// Not looked at: there were too many wrong ones from there.
    Ignored,
}

impl Limits {
    pub fn new(requests: Rate, wrong_tokens: Rate) -> Self {
        let now = Instant::now();
        let rest = Account {
            connections: 0,
            requests: Bucket::full(requests, now),
            wrong_tokens: Bucket::full(wrong_tokens, now),
        };
        let accounts = Accounts { by_address: HashMap::new(), rest, connections: 0, forgot: now };
        Limits { requests, wrong_tokens, accounts: Mutex::new(accounts) }
    }

    /// For as long as the connection stays; `None`: it is one too many.
    pub fn connect(self: &Arc<Self>, from: IpAddr, tls: bool, now: Instant) -> Option<Connection> {
        let address = network(from);
        let mut accounts = self.accounts.lock().expect("never held across a panic");
        if accounts.connections >= CONNECTIONS_MAX {
            return None;
        }
        let (account, own) = self.account(&mut accounts, address, now);
        // What has no account of its own cannot be told apart, so only all of it has a limit.
        if own && account.connections >= CONNECTIONS_OF_ONE_MAX || tls && !account.requests.take(HANDSHAKE) {
            return None;
        }
        account.connections += 1;
        accounts.connections += 1;
        Some(Connection { limits: self.clone(), address, own })
    }

    fn request(&self, address: IpAddr, now: Instant) -> bool {
        let mut accounts = self.accounts.lock().expect("never held across a panic");
        self.account(&mut accounts, address, now).0.requests.take(1.0)
    }

    /// In one step, so that many at once learn no more than one after the other.
    fn token(&self, address: IpAddr, right: bool, now: Instant) -> Token {
        let mut accounts = self.accounts.lock().expect("never held across a panic");
        let left = &mut self.account(&mut accounts, address, now).0.wrong_tokens;
        match right {
            _ if left.left < 1.0 => Token::Ignored,
            true => Token::Right,
            false => {
                left.take(1.0);
                Token::Wrong
            }
        }
    }

    /// With what was given back since; and whether it is the address's own.
    fn account<'a>(&self, accounts: &'a mut Accounts, address: IpAddr, now: Instant) -> (&'a mut Account, bool) {
        let known = accounts.by_address.contains_key(&address);
        if !known && accounts.by_address.len() >= ADDRESSES_MAX && now >= accounts.forgot + FORGET_EVERY {
            accounts.forgot = now;
            accounts.by_address.retain(|_, account| {
                self.refill(account, now);
                account.connections > 0
                    || account.requests.left < self.requests.burst
                    || account.wrong_tokens.left < self.wrong_tokens.burst
            });
        }
        let own = known || accounts.by_address.len() < ADDRESSES_MAX;
        let account = match own {
            true => accounts.by_address.entry(address).or_insert_with(|| Account {
                connections: 0,
                requests: Bucket::full(self.requests, now),
                wrong_tokens: Bucket::full(self.wrong_tokens, now),
            }),
            false => &mut accounts.rest,
        };
        self.refill(account, now);
        (account, own)
    }

    fn refill(&self, account: &mut Account, now: Instant) {
        account.requests.refill(self.requests, now);
        account.wrong_tokens.refill(self.wrong_tokens, now);
    }
}

/// Who has the low half of an IPv6 address to choose, has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// One that counts; every request on it knows it.
#[derive(Debug)]
pub struct Connection {
    limits: Arc<Limits>,
    address: IpAddr,
    own: bool,
}

impl Connection {
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether one more request may be answered.
    pub fn request(&self) -> bool {
        self.limits.request(self.address, Instant::now())
    }

    pub fn token(&self, right: bool) -> Token {
        self.limits.token(self.address, right, Instant::now())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut accounts = self.limits.accounts.lock().expect("never held across a panic");
        accounts.connections -= 1;
        if !self.own {
            accounts.rest.connections -= 1;
        } else if let Some(account) = accounts.by_address.get_mut(&self.address) {
            account.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIGHT: Rate = Rate { per_second: 2.0, burst: 3.0 };

    fn v4(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn what_is_too_much_is_refused_until_some_time_has_passed_and_to_that_address_alone() {
        let (limits, now) = (Limits::new(TIGHT, TIGHT), Instant::now());

        let at_once = (0..5).filter(|_| limits.request(v4(1), now)).count();
        assert_eq!((at_once, limits.request(v4(2), now)), (3, true));

        let later = now + Duration::from_millis(500);
        assert_eq!((limits.request(v4(1), later), limits.request(v4(1), later)), (true, false));
        let much_later = now + Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| limits.request(v4(1), much_later)).count(), 3);
    }

    #[test]
    fn after_too_many_wrong_tokens_the_right_one_is_not_told_from_them_either() {
        let (limits, now) = (Limits::new(TIGHT, TIGHT), Instant::now());

        for _ in 0..3 {
            assert_eq!(limits.token(v4(1), true, now), Token::Right);
            assert_eq!(limits.token(v4(1), false, now), Token::Wrong);
        }
        assert_eq!(limits.token(v4(1), false, now), Token::Ignored);
        assert_eq!(limits.token(v4(1), true, now), Token::Ignored);
        assert_eq!(limits.token(v4(2), true, now), Token::Right);

        assert_eq!(limits.token(v4(1), true, now + Duration::from_millis(500)), Token::Right);
    }

    #[test]
    fn one_address_gets_a_part_of_the_connections_and_gives_them_back() {
        let (limits, now) = (Arc::new(Limits::default()), Instant::now());

        let mut of_one: Vec<_> = (0..200).filter_map(|_| limits.connect(v4(1), false, now)).collect();
        assert_eq!(of_one.len(), CONNECTIONS_OF_ONE_MAX);
        assert!(limits.connect(v4(2), false, now).is_some());
        of_one.pop();
        assert!(limits.connect(v4(1), false, now).is_some());

        let all: Vec<_> = (2..2000).filter_map(|n| limits.connect(v4(n), false, now)).collect();
        assert_eq!(of_one.len() + all.len(), CONNECTIONS_MAX);
        drop((of_one, all));
        assert!(limits.connect(v4(1), false, now).is_some());
    }

    #[test]
    fn a_handshake_costs_more_than_a_request() {
        let (limits, now) = (Arc::new(Limits::default()), Instant::now());

        let count = (0..1000).filter(|_| limits.connect(v4(1), true, now).is_some()).count();

        assert_eq!(count, 100);
    }

    #[test]
    fn the_table_of_addresses_stays_small_and_forgets_none_that_owes() {
        let (limits, now) = (Limits::new(TIGHT, TIGHT), Instant::now());
        let len = || limits.accounts.lock().unwrap().by_address.len();
        (0..3).for_each(|_| assert!(limits.request(v4(1), now)));

        let answered = (2..20_000).filter(|n| limits.request(v4(*n), now)).count();
        assert_eq!(len(), ADDRESSES_MAX);
        assert_eq!(answered, ADDRESSES_MAX - 1 + 3, "those beyond share one account");
        assert!(!limits.request(v4(1), now));

        // All the others have what they had at first again; this one has just asked.
        let later = now + Duration::from_secs(60);
        assert!(limits.request(v4(1), later));
        assert!(limits.request(v4(30_000), later));
        assert_eq!(len(), 2);
    }

    #[test]
    fn addresses_that_one_machine_may_choose_from_are_one() {
        let of = |text: &str| network(text.parse().unwrap());

        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
