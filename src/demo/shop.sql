-- MySQL.
CREATE DATABASE shop CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin; -- a key is what its bytes are
CREATE USER shop@'%' IDENTIFIED BY 'demo';
GRANT ALL ON shop.* TO shop@'%';
CREATE USER anechoic@'%' IDENTIFIED BY 'demo';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO anechoic@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON shop.* TO anechoic@'%';
GRANT CREATE, DROP, SELECT, INSERT, UPDATE, DELETE ON anechoic.* TO anechoic@'%';
USE shop;
CREATE TABLE customers (
    customer_id bigint PRIMARY KEY,
    first_name  text NOT NULL,
    surname     text NOT NULL,
    mail        text,
    joined_on   char(10) NOT NULL, -- 31/01/2026
    st          char(1) NOT NULL   -- A active, C closed
);
CREATE TABLE `order` (
    no          bigint PRIMARY KEY,
    customer_id bigint NOT NULL,
    sku         varchar(20) NOT NULL,
    quantity    int NOT NULL,
    amount      decimal(10,2) NOT NULL,
    created_at  timestamp(6) NOT NULL,
    status      enum('new', 'paid', 'shipped') NOT NULL
);
CREATE TABLE inventory (
    sku        varchar(20) PRIMARY KEY,
    name       text NOT NULL,
    in_stock   int NOT NULL,
    list_price decimal(10,2) NOT NULL
);
CREATE TABLE accounts (
    account_id char(36) PRIMARY KEY,
    login      varchar(60) NOT NULL,
    full_name  text NOT NULL,
    is_enabled tinyint(1) NOT NULL,
    settings   json NOT NULL
);
