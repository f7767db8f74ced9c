//! A log's end in a JSON file: GTID sets as the servers write them.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::position::{BinlogPosition, Lsn, MariadbGtid, Position};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    Postgres(Lsn),
    Mysql { gtids: String, binlog: BinlogPosition, server_uuid: String },
    Mariadb { domains: BTreeMap<u32, MariadbGtid>, binlog: BinlogPosition },
    Memory(u64),
}

pub fn serialize<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    let end = match position.clone() {
        Position::Postgres { lsn } => End::Postgres(lsn),
        Position::Mysql { gtids, binlog, server_uuid } => End::Mysql { gtids: gtids.to_string(), binlog, server_uuid },
        Position::Mariadb { domains, binlog } => End::Mariadb { domains, binlog },
        Position::Memory { index } => End::Memory(index),
    };
    end.serialize(serializer)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
    Ok(match End::deserialize(deserializer)? {
        End::Postgres(lsn) => Position::Postgres { lsn },
        End::Mysql { gtids, binlog, server_uuid } => {
            Position::Mysql { gtids: gtids.parse().map_err(D::Error::custom)?, binlog, server_uuid }
        }
        End::Mariadb { domains, binlog } => Position::Mariadb { domains, binlog },
        End::Memory(index) => Position::Memory { index },
    })
}
