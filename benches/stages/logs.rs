//! What two kinds of servers log of one transaction, byte by byte, and its reading.
//!
//! pgoutput: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>;
//! binlog: <https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_replication_binlog_event.html>.

use anechoic::capture::mysql::binlog::Reader;
use anechoic::capture::mysql::event::{Event, kind};
use anechoic::capture::postgres::transaction::Transactions;
use anechoic::capture::{Begin, CaptureSpec, Commit, RowEvent, Sink};
use anechoic::catalog::TableName;
use anechoic::connect::mysql::Flavour;
use anechoic::error::Result;
use anechoic::marker::Marker;
use anechoic::position::{BinlogPosition, Lsn, Position};
use tokio::sync::watch;

use super::table::{NOTE, ROWS, name, price, wanted};

/// Takes everything, keeps nothing.
struct Nowhere(u64);

impl Sink for Nowhere {
    fn begin(&mut self, _: Begin<'_>) -> Result<()> {
        Ok(())
    }
    fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
        self.0 += 1;
        std::hint::black_box(row);
        Ok(())
    }
    fn truncate(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: Commit<'_>) -> Result<()> {
        Ok(())
    }
    fn prepare(&mut self, _: &str, _: Position) -> Result<()> {
        Ok(())
    }
    fn decide(&mut self, _: &str, _: bool, _: Commit<'_>) -> Result<()> {
        Ok(())
    }
    fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
        Ok(false)
    }
    fn echo(&mut self, _: &Marker, _: Position) -> Result<()> {
        Ok(())
    }
    fn passed(&mut self, _: Position) -> Result<()> {
        Ok(())
    }
    fn full(&self) -> bool {
        false
    }
}

fn marker() -> TableName {
    TableName { schema: "anechoic".into(), name: "marker".into() }
}

/// The bodies of CopyData messages: the relation, Begin, an Insert for each row, Commit.
pub fn pgoutput() -> Vec<Vec<u8>> {
    let data = |parts: &[&[u8]]| [&[b'w'][..], &[0; 24], &parts.concat()].concat();
    let types: [(&str, u32); 7] =
        [("id", 20), ("name", 25), ("born", 1082), ("price", 1700), ("count", 23), ("state", 25), ("note", 25)];
    let mut relation = [&b"R\0\0\0\x01public\0item\0f"[..], &7u16.to_be_bytes()].concat();
    for (column, oid) in types {
        let limits = if column == "price" { (12 << 16 | 2) + 4 } else { -1i32 };
        relation.extend([&[1][..], column.as_bytes(), &[0], &oid.to_be_bytes(), &limits.to_be_bytes()].concat());
    }
    let begin = data(&[b"B", &200u64.to_be_bytes(), &[0; 8], &7u32.to_be_bytes()]);
    let commit = data(&[b"C\0", &[0; 8], &300u64.to_be_bytes(), &[0; 8]]);
    let insert = |n: u64| {
        let mut tuple = [&b"I\0\0\0\x01N"[..], &7u16.to_be_bytes()].concat();
        let born = format!("19{:02}-{:02}-{:02}", 10 + n % 90, 1 + n % 12, 1 + n % 28);
        let texts = [n.to_string(), name(n), born, price(n), (n % 1000).to_string(), "new".into(), NOTE.into()];
        for (at, text) in texts.iter().enumerate() {
            match at == 6 && n.is_multiple_of(5) {
                true => tuple.push(b'n'),
                false => tuple.extend([b"t", &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()),
            }
        }
        data(&[&tuple])
    };
    [begin, data(&[&relation])].into_iter().chain((1..=ROWS).map(insert)).chain([commit]).collect()
}

pub fn read_pgoutput(messages: &mut [Vec<u8>]) {
    let start = Position::Postgres { lsn: Lsn(100) };
    let spec = CaptureSpec {
        agent: "hq".into(),
        marker: marker(),
        tables: vec![wanted("public")],
        start: start.clone(),
        prepared: Default::default(),
        without_origins: false,
        identity: "1/1".into(),
        acknowledged: watch::channel(start).1,
    };
    let (mut transactions, mut sink) = (Transactions::new(&spec, Lsn(100)), Nowhere(0));
    for message in messages {
        transactions.handle(message, &mut sink).expect("well formed");
    }
    assert_eq!(sink.0, ROWS);
}

/// A GTID, BEGIN, the table's map, row events of a hundred rows each, and the commit.
pub fn binlog() -> Vec<(u8, Vec<u8>)> {
    const VARCHAR: [u8; 2] = [200, 0];
    let columns: [(u8, &[u8], &str); 7] = [
        (8, &[], "id"),
        (15, &VARCHAR, "name"),
        (10, &[], "born"),
        (246, &[12, 2], "price"),
        (3, &[], "count"),
        (15, &VARCHAR, "state"),
        (15, &VARCHAR, "note"),
    ];
    let mut map = [&7u64.to_le_bytes()[..6], &[1, 0], &[4], b"shop\0", &[4], b"item\0", &[7]].concat();
    map.extend(columns.iter().map(|(kind, ..)| *kind));
    let metadata: Vec<u8> = columns.iter().flat_map(|(_, metadata, _)| metadata.iter().copied()).collect();
    map.push(metadata.len() as u8);
    map.extend(metadata);
    map.push(0b111_1110);
    // Signedness of three numbers; utf8mb4 everywhere; the names.
    map.extend([1, 1, 0, 2, 1, 45]);
    let names: Vec<u8> =
        columns.iter().flat_map(|(.., name)| [&[name.len() as u8], name.as_bytes()].concat()).collect();
    map.extend([4, names.len() as u8]);
    map.extend(names);
    let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let row = |n: u64| {
        let null = n.is_multiple_of(5);
        let born = (2000 << 9 | (1 + n as u32 % 12) << 5 | (1 + n as u32 % 28)).to_le_bytes();
        // Ten digits before the point and two behind it: one byte, four, one.
        let whole = (n * 7 % 10_000) as u32;
        let price = [&[0x80][..], &whole.to_be_bytes(), &[(n % 100) as u8]].concat();
        let mut row = vec![if null { 0b100_0000 } else { 0 }];
        let parts = [
            n.to_le_bytes().to_vec(),
            sized(&name(n)),
            born[..3].to_vec(),
            price,
            (n as u32 % 1000).to_le_bytes().to_vec(),
            sized("new"),
        ];
        parts.into_iter().for_each(|part| row.extend(part));
        if !null {
            row.extend(sized(NOTE));
        }
        row
    };
    let head = [&7u64.to_le_bytes()[..6], &[1, 0], &[2, 0], &[7], &[0x7f]].concat();
    let numbers: Vec<u64> = (1..=ROWS).collect();
    let rows = numbers.chunks(100).map(|chunk| {
        let rows: Vec<u8> = chunk.iter().flat_map(|n| row(*n)).collect();
        (kind::WRITE_ROWS, [&head[..], &rows].concat())
    });
    let gtid = [&[0][..], &[1; 16], &5u64.to_le_bytes(), &[2], &[0; 16], &[9, 0, 0, 0, 0, 0, 0]].concat();
    let query = [&[0; 8][..], &[4], &[0; 4], b"shop", &[0], b"BEGIN"].concat();
    let mut events = vec![(kind::GTID, gtid), (kind::QUERY, query), (kind::TABLE_MAP, map)];
    events.extend(rows);
    events.push((kind::XID, vec![0; 8]));
    events
}

pub fn read_binlog(events: &[(u8, Vec<u8>)]) {
    let start = Position::Mysql {
        gtids: "01010101-0101-0101-0101-010101010101:1-4".parse().expect("valid"),
        binlog: BinlogPosition { file: "b.000001".into(), offset: 4, begun: 0 },
        server_uuid: "u".into(),
    };
    let tables = [wanted("shop")];
    let mut reader = Reader::new(Flavour::Mysql, "hq", &marker(), &tables, &start, true).expect("of its kind");
    let mut sink = Nowhere(0);
    for (kind, data) in events {
        let event = Event { kind: *kind, timestamp: 1, server_id: 3, log_pos: 0, flags: 0, data };
        reader.event(event, &mut sink).expect("well formed");
    }
    assert_eq!(sink.0, ROWS);
}
